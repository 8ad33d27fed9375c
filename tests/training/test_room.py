"""A GPU that an engine fills: refused with the figures, or the engine stopped for the run and given back after it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.fake_steps import weights_after
from tests.training.shop import Shop
from training.run import process
from training.types import JobState, Outcome

SMI = """#!/bin/sh
if [ -e '{engine}' ]; then used=78000; else used=500; fi
echo "0, GPU-1, $used, 81559, 3"
"""


@dataclass(frozen=True)
class Engine:
    """A file that is there while it runs."""

    file: Path

    @property
    def runs(self) -> bool:
        return self.file.exists()

    def start(self) -> None:
        self.file.write_text("runs")

    @property
    def asked(self) -> int:
        """How often it was asked to stop."""
        file = self.file.with_name("borrow-tries")
        return int(file.read_text() or 0) if file.exists() else 0


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that fills the GPU while it runs, as an nvidia-smi of ours says."""
    file, program = tmp_path / "engine", tmp_path / "bin" / "nvidia-smi"
    file.write_text("runs")
    program.parent.mkdir()
    program.write_text(SMI.format(engine=file))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return Engine(file)


def full(engine: Engine | None, **more: Any) -> dict[str, Any]:
    """The fake's settings for a run that finds no room beside the engine."""
    agreed = {"engine": str(engine.file)} if engine is not None else {}
    return {"max_steps": 10, "settled": {"memory_gb": 20.0}, **agreed, **more}


async def test_without_consent_it_is_refused_before_compute_with_both_figures(shop: Shop, engine: Engine) -> None:
    job = await shop.add(**full(None))
    await shop.work(("0",))
    done = await shop.jobs.show(job.id)
    assert (done.state, done.outcome, done.attempts) == (JobState.FAILED, Outcome.NOTHING, 0)
    assert done.error is not None
    assert done.error.code == "gpu_memory"
    assert "needs about 20.0 GB of GPU memory, and GPU 0 has 3.7 of 85.5 GB free" in done.error.message
    assert "`pause_engine: true`" in done.error.message
    assert engine.runs


async def test_with_consent_the_engine_stands_still_while_it_trains_and_no_longer(shop: Shop, engine: Engine) -> None:
    job = await shop.add(**full(engine, gate=shop.gate(), finish_waits=shop.gate("finish"), borrow_away=2))
    shop.let("gate", 4)
    async with shop.working(("0",)):
        await shop.until_step(job.id, 4)
        assert not engine.runs
        attempt = process.read(shop.places.job(job.id))
        assert attempt is not None
        assert attempt.alone
        shop.let("gate", 100)
        await shop.until(job.id, lambda job: job.phase is not None and job.phase.value == "evaluating")
        assert engine.runs  # which evaluates
        shop.let("finish", 1)
        await shop.until_state(job.id, JobState.SUCCEEDED)
    said = await shop.said(job.id)
    assert "The engine that serves was stopped, and starts again when the training has ended" in said
    assert shop.weights(job.id) == weights_after(10)


async def test_where_there_is_room_beside_it_the_engine_is_left_alone(shop: Shop, engine: Engine) -> None:
    job = await shop.add(**full(engine, settled={"memory_gb": 2.0}))
    await shop.work(("0",))
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    assert engine.asked == 0


async def test_on_the_processor_the_memory_of_the_machine_is_what_counts(shop: Shop, engine: Engine) -> None:
    job = await shop.add(**full(engine, settled={"memory_gb": 1e6}))
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert done.error is not None
    assert (done.error.code, done.attempts) == ("memory", 0)
    assert engine.asked == 1
    assert engine.runs  # stopped, it was not enough either: given back


@pytest.mark.parametrize("how", ["paused", "cancelled", "failed"])
async def test_however_the_run_ends_the_engine_comes_back(shop: Shop, engine: Engine, how: str) -> None:
    more = {"raises": "SomethingError: never heard of"} if how == "failed" else {}
    job = await shop.add(**full(engine, gate=shop.gate(), **more))
    shop.let("gate", 4)
    async with shop.working(("0",)):
        if how != "failed":
            await shop.until_step(job.id, 4)
            assert not engine.runs
            await (shop.jobs.pause(job.id) if how == "paused" else shop.jobs.cancel(job.id))
        await shop.until_state(job.id, JobState(how))
    assert engine.runs
    assert engine.asked >= 1


async def test_an_engine_that_cannot_be_stopped_is_said_beside_the_figures(shop: Shop, engine: Engine) -> None:
    job = await shop.add(**full(engine, unborrowable="This gateway started no engine, so it can stop none."))
    await shop.work(("0",))
    done = await shop.jobs.show(job.id)
    assert done.error is not None
    assert (done.state, done.error.code) == (JobState.FAILED, "gpu_memory")
    said = await shop.said(job.id)
    assert "The engine was not stopped: This gateway started no engine, so it can stop none." in said


async def test_it_is_said_again_and_again_also_by_the_next_worker(shop: Shop, engine: Engine) -> None:
    """A worker that is killed leaves a trainer that needs the room; the next one finds both."""
    shop.lease_s = 0.1
    job = await shop.add(**full(engine, max_steps=30, gate=shop.gate()))
    shop.let("gate", 6)
    async with shop.working(("0",)):
        await shop.until_step(job.id, 6)
        seen = engine.asked
        while engine.asked < seen + 3:
            await asyncio.sleep(0.01)
    assert not engine.runs  # the worker has ended, its trainer has not
    engine.start()  # the lease is over
    async with shop.working(("0",)):
        while engine.runs:
            await asyncio.sleep(0.01)
        shop.let("gate", 100)
        await shop.until_state(job.id, JobState.SUCCEEDED)
    assert engine.runs
    assert len(shop.starts(job.id)) == 1


async def test_a_run_that_does_not_agree_waits_for_an_engine_that_stands_still(shop: Shop, engine: Engine) -> None:
    """What is free while it does is not what it will leave free."""
    engine.file.unlink()
    job = await shop.add(**full(None, beside=str(engine.file)))
    async with shop.working(("0",)):
        await shop.until(job.id, lambda job: job.state is JobState.RUNNING)
        waits = "The engine that serves beside is not running now: the run starts when it is. It is tried again"
        while not any(waits in said for said in await shop.said(job.id)):
            await asyncio.sleep(0.01)
        assert (await shop.jobs.show(job.id)).attempts == 0
        engine.start()
        done = await shop.until_state(job.id, JobState.FAILED)
    assert done.error is not None
    assert done.error.code == "gpu_memory"


async def test_one_that_agrees_and_finds_it_standing_still_says_so_too(shop: Shop, engine: Engine) -> None:
    """A worker that was killed behind its word to the gateway, and before its trainer."""
    engine.file.unlink()
    job = await shop.add(**full(engine, gate=shop.gate()))
    shop.let("gate", 4)
    async with shop.working(("0",)):
        await shop.until_step(job.id, 4)
        attempt = process.read(shop.places.job(job.id))
        assert attempt is not None
        assert (attempt.alone, engine.asked) == (True, 1)
        shop.let("gate", 100)
        await shop.until_state(job.id, JobState.SUCCEEDED)
    assert engine.runs


async def test_the_next_run_does_not_take_the_room_before_the_first_is_evaluated(shop: Shop, engine: Engine) -> None:
    first = await shop.add(**full(engine, finish_waits=shop.gate("finish")))
    async with shop.working(("0",)):
        await shop.until(first.id, lambda job: job.phase is not None and job.phase.value == "evaluating")
        second = await shop.add(**full(engine))
        await shop.until_state(second.id, JobState.QUEUED)
        await asyncio.sleep(0.2)  # some looks at the queue
        assert (await shop.jobs.show(second.id)).state is JobState.QUEUED
        assert engine.runs
        shop.let("finish", 1)
        await shop.until_state(second.id, JobState.SUCCEEDED)
    began, ended = (await shop.jobs.show(second.id)).started_at, (await shop.jobs.show(first.id)).finished_at
    assert began is not None
    assert ended is not None
    assert began >= ended
