"""A real run that is killed, paused and gone on with ends in the same bytes as one that nobody disturbed (CPU)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.db import Database
from tests import databases
from tests.e2e.real_run import STEPS, worker
from training.places import Places
from training.run import process
from training.run.checkpoints import present
from training.service import JobService
from training.types import Job, JobState

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]


class Room:
    def __init__(self, data: Path, python: Path) -> None:
        self.db = Database.open(databases.sqlite(data / "loragate.db"))
        self.jobs = JobService(self.db, clock=time.time, random_bytes=os.urandom)
        self.places = Places(data)
        self.python = python

    async def work(self) -> None:
        await worker(self.db, self.places, self.python).run(asyncio.Event(), once=True)

    def child(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "tests.e2e.real_run", str(self.places.data), str(self.python)]
        return subprocess.Popen(argv, cwd=ROOT)

    async def until(self, job_id: str, true: Callable[[Job], bool]) -> Job:
        while not true(job := await self.jobs.show(job_id)):
            assert job.error is None, job.error
            await asyncio.sleep(0.05)
        return job

    async def until_step(self, job_id: str, step: int) -> Job:
        return await self.until(job_id, lambda job: job.progress is not None and job.progress.step >= step)

    def weights(self, job_id: str) -> bytes:
        return (self.places.job(job_id) / "out" / "adapter_model.safetensors").read_bytes()


async def test_killed_and_paused_it_ends_in_the_same_weights(training_python: Path, tmp_path: Path) -> None:
    calm = Room(tmp_path / "calm", training_python)
    quiet = await calm.jobs.create("customer-service", {})
    await calm.work()
    done = await calm.jobs.show(quiet.id)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert done.progress is not None
    assert (done.progress.step, done.progress.steps) == (STEPS, STEPS)
    assert done.progress.grad_norm is not None
    assert [each.step for each in await calm.jobs.checkpoints(quiet.id)] == [24, 20, 16, 12, 8, 4]

    rough = Room(tmp_path / "rough", training_python)
    job = await rough.jobs.create("customer-service", {})
    first = rough.child()
    try:
        await rough.until_step(job.id, 6)
        trainer = process.read(rough.places.job(job.id))
        assert trainer is not None
    finally:
        first.kill()
        first.wait()
    os.kill(trainer.pid, signal.SIGKILL)
    second = rough.child()
    try:
        await rough.until(job.id, lambda job: job.attempts == 2)
        await rough.until_step(job.id, 10)
        await rough.jobs.pause(job.id)
        paused = await rough.until(job.id, lambda job: job.state is JobState.PAUSED)
        # Asked by SIGTERM it saved where it was, and what it had besides, which is no result.
        assert max(present(rough.places.output(job.id))) >= 10
        assert rough.weights(job.id) != calm.weights(quiet.id)
        assert process.marked(job.id) == []
        await rough.jobs.resume(job.id)
        done = await rough.until(job.id, lambda job: job.is_final)
    finally:
        second.kill()
        second.wait()
    said = [event.message for event in await rough.jobs.events(job.id)]
    assert (paused.attempts, done.state, done.attempts) == (2, JobState.SUCCEEDED, 3), said
    [killed, asked] = [int(line.split()[5].rstrip(",")) for line in said if line.startswith("Training goes on")]
    assert killed == 4
    assert asked >= 10  # nothing is trained twice
    assert rough.weights(job.id) == calm.weights(quiet.id)
    for room in (calm, rough):
        room.db.close()
