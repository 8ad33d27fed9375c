"""Two workers, each with a data directory of its own, on one database: every job is carried once, on both kinds."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.db import Database
from tests.databases import Postgres
from tests.training.shop import Shop
from training import store_jobs as store
from training.run.record import Record
from training.service import JobService
from training.types import Job, JobState, Outcome, Wish


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


class Two:
    """A worker and a person at one job on PostgreSQL, each in a transaction of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.theirs, self.ours = Database.open(url), Database.open(url)
        self.jobs = JobService(self.ours, clock=time.time, random_bytes=os.urandom)
        self.record = Record(self.theirs, "w1", time.time)

    async def job(self, **fields: object) -> Job:
        made = await self.jobs.create("customer-service", {})
        return await self.record.change(made.id, **fields)

    @contextmanager
    def halfway(self, work: Callable[[sa.Connection], object]) -> Iterator[threading.Event]:
        """`work` done in a transaction that is committed only when the event is set, or the block ends."""
        done, go = threading.Event(), threading.Event()

        def hold() -> None:
            def both(conn: sa.Connection) -> None:
                work(conn)
                done.set()
                go.wait(30)

            self.theirs._transact(both, True)

        thread = threading.Thread(target=hold)
        thread.start()
        done.wait(30)
        try:
            yield go
        finally:
            go.set()
            thread.join()

    async def until_somebody_waits(self, task: asyncio.Task[object]) -> None:
        """For a row's lock, in the other transaction."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while not task.done() and not await self.ours.look(waiting):
            await asyncio.sleep(0.01)

    async def shown(self, job: Job) -> Job:
        return await self.jobs.show(job.id)

    def close(self) -> None:
        self.theirs.close()
        self.ours.close()


@pytest.fixture
def two(postgres: Postgres) -> Iterator[Two]:
    with postgres.database() as url:
        both = Two(url)
        yield both
        both.close()


@pytest.mark.xdist_group("postgresql")
async def test_a_cancel_in_the_instant_of_a_pause_ends_the_job(two: Two) -> None:
    job = await two.job(state=JobState.RUNNING, worker="w1", wish=Wish.PAUSE)
    paused: dict[str, Any] = {"state": JobState.PAUSED, "worker": None, "wish": None}
    with two.halfway(lambda conn: store.change(conn, job.id, **paused)) as go:
        cancelling = asyncio.create_task(two.jobs.cancel(job.id))
        await two.until_somebody_waits(cancelling)
        go.set()
        await cancelling
    done = await two.shown(job)
    assert (done.state, done.wish, done.worker) == (JobState.CANCELLED, None, None)


@pytest.mark.xdist_group("postgresql")
async def test_a_pause_in_the_instant_of_a_cancel_does_not_undo_it(two: Two) -> None:
    job = await two.job(state=JobState.RUNNING, worker="w1", wish=Wish.PAUSE)
    with two.halfway(lambda conn: store.change(conn, job.id, wish=Wish.CANCEL)) as go:
        pausing = asyncio.create_task(Record(two.ours, "w1", time.time).paused(job.id, "Paused"))
        await two.until_somebody_waits(pausing)
        go.set()
        assert await pausing is False
    done = await two.shown(job)
    assert (done.state, done.wish, done.worker) == (JobState.RUNNING, Wish.CANCEL, "w1")


@pytest.mark.xdist_group("postgresql")
async def test_a_job_that_is_cancelled_as_a_worker_takes_it_is_not_taken(two: Two) -> None:
    job = await two.job(state=JobState.QUEUED)
    cancelled: dict[str, Any] = {"state": JobState.CANCELLED, "outcome": Outcome.NOTHING}
    with two.halfway(lambda conn: store.change(conn, job.id, **cancelled)) as go:
        taking = asyncio.create_task(Record(two.ours, "w1", time.time).take(JobState.QUEUED))
        await two.until_somebody_waits(taking)
        go.set()
        assert await taking is None
    done = await two.shown(job)
    assert (done.state, done.worker) == (JobState.CANCELLED, None)


@pytest.mark.xdist_group("postgresql")
async def test_a_resume_in_the_instant_of_a_pause_lets_it_queue(two: Two) -> None:
    job = await two.job(state=JobState.RUNNING, worker="w1", wish=Wish.PAUSE, settled={})
    paused: dict[str, Any] = {"state": JobState.PAUSED, "worker": None, "wish": None}
    with two.halfway(lambda conn: store.change(conn, job.id, **paused)) as go:
        resuming = asyncio.create_task(two.jobs.resume(job.id))
        await two.until_somebody_waits(resuming)
        go.set()
        await resuming
    assert (await two.shown(job)).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("wish", "state"),
    [
        (Wish.PAUSE, JobState.PAUSED),
        (Wish.CANCEL, JobState.CANCELLED),
        (Wish.CANCEL_AND_KEEP, JobState.CANCELLED),
        (None, JobState.QUEUED),
    ],
)
async def test_a_wish_that_meets_a_worker_that_puts_its_job_back_is_not_left_to_the_next(
    pair: tuple[Shop, Shop], wish: Wish | None, state: JobState
) -> None:
    shop, _ = pair
    record = Record(shop.db, "w1", time.time)
    job = await shop.add()
    await record.change(job.id, state=JobState.RUNNING, worker="w1", wish=wish, attempts=1)
    await record.queued(job.id, JobState.QUEUED, "Stopped, with the worker")
    done = await shop.jobs.show(job.id)
    assert (done.state, done.worker, done.wish) == (state, None, None)
    if state is JobState.CANCELLED:
        assert done.outcome is (Outcome.PARTIAL if wish is Wish.CANCEL_AND_KEEP else Outcome.NOTHING)
