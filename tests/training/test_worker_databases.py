"""Two workers, each with a data directory of its own, on one database: every job is carried once, on both kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.training.shop import Shop
from training.types import JobState, Outcome


@pytest.fixture
async def pair(tmp_path: Path, database_url: str) -> AsyncIterator[tuple[Shop, Shop]]:
    shops = Shop(tmp_path / "one", url=database_url), Shop(tmp_path / "two", url=database_url)
    yield shops
    for shop in shops:
        await shop.close()


async def test_every_job_is_carried_once(pair: tuple[Shop, Shop]) -> None:
    one, two = pair
    jobs = [await one.add(max_steps=5) for _ in range(5)]
    async with one.working(), two.working():
        done = [await one.until_state(job.id, JobState.SUCCEEDED, JobState.FAILED) for job in jobs]
    assert {job.state for job in done} == {JobState.SUCCEEDED}
    assert [job.attempts for job in done] == [1] * 5
    for job in jobs:
        starts = [shop.places.job(job.id) / "starts" for shop in pair]
        assert sum(len(file.read_text().split()) for file in starts if file.exists()) == 1
    assert len({shop.places.worker_id.read_text() for shop in pair}) == 2


async def test_wishes_reach_the_worker_that_has_the_job(pair: tuple[Shop, Shop]) -> None:
    one, two = pair
    job = await one.add(max_steps=50, gate=one.gate())
    one.let("gate", 6)
    async with two.working():
        await one.until_step(job.id, 6)
        await one.jobs.pause(job.id)
        await one.until_state(job.id, JobState.PAUSED)
        await one.jobs.resume(job.id)
        one.let("gate", 9)
        await one.until(job.id, lambda job: job.attempts == 2)
        await one.until_step(job.id, 9)
        await one.jobs.cancel(job.id, keep=True)
        assert (await one.until_state(job.id, JobState.CANCELLED)).outcome is Outcome.PARTIAL
