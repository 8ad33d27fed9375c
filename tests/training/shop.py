"""A worker on a real database with the fake trainer: in this process, or as a child to be killed (`python -m`)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from adapters.db import Database
from tests import databases
from tests.training.fake_steps import FakeSteps
from training.places import Places
from training.run import process
from training.run.carrier import Workshop
from training.run.record import Record
from training.run.stopping import Grace
from training.run.telling import Pace
from training.service import JobService
from training.types import Job, JobEvent, JobState
from training.worker import Rhythm, Worker, identity

ROOT = Path(__file__).resolve().parents[2]
PACE = Pace(look_s=0.02, progress_s=0.05, picture_s=math.inf)
GRACE = Grace(save_s=2.0, saving_s=4.0, leave_s=2.0, poll_s=0.02)
RHYTHM = Rhythm(look_s=0.05, beat_s=0.2, again_s=0.2)


class Shop:
    """The jobs of one data directory, and workers for them."""

    def __init__(self, data: Path, grace: Grace = GRACE, url: str | None = None) -> None:
        self.places = Places(data)
        data.mkdir(parents=True, exist_ok=True)
        if url is None and not (data / "loragate.db").exists():
            databases.sqlite(data / "loragate.db")
        self.db = Database.open(url or f"sqlite:///{data / 'loragate.db'}")
        self.jobs = JobService(self.db, clock=time.time, random_bytes=os.urandom)
        self.grace = grace
        self.pace = PACE
        self.lease_s = 60.0

    def worker(self, devices: Sequence[str] = ("",)) -> Worker:
        record = Record(self.db, identity(self.places, os.urandom), time.time)
        shop = Workshop(
            record, FakeSteps(), self.places, self.pace, self.grace, away_s=0.02, again_s=0.02, lease_s=self.lease_s
        )
        return Worker(shop, devices, rhythm=RHYTHM)

    async def add(self, priority: int = 0, **fake: Any) -> Job:
        return await self.jobs.create("customer-service", {"fake": fake}, priority=priority)

    async def work(self, devices: Sequence[str] = ("",)) -> None:
        """Until nothing is left to do."""
        await self.worker(devices).run(asyncio.Event(), once=True)

    @asynccontextmanager
    async def working(self, devices: Sequence[str] = ("",), *, stop_runs: bool = False) -> AsyncIterator[asyncio.Event]:
        """A worker in this process, until the block ends."""
        ending = asyncio.Event()
        task = asyncio.create_task(self.worker(devices).run(ending, stop_runs=stop_runs))
        try:
            yield ending
        finally:
            ending.set()
            await task

    def child(self) -> subprocess.Popen[bytes]:
        """A worker as a process of its own."""
        argv = [sys.executable, "-m", "tests.training.shop", str(self.places.data)]
        return subprocess.Popen(argv, cwd=ROOT, start_new_session=True)

    async def until(self, job_id: str, true: Callable[[Job], bool]) -> Job:
        while not true(job := await self.jobs.show(job_id)):
            await asyncio.sleep(0.01)
        return job

    async def until_state(self, job_id: str, *states: JobState) -> Job:
        return await self.until(job_id, lambda job: job.state in states)

    async def until_step(self, job_id: str, step: int) -> Job:
        return await self.until(job_id, lambda job: job.progress is not None and job.progress.step >= step)

    async def events(self, job_id: str) -> tuple[JobEvent, ...]:
        return await self.jobs.events(job_id, limit=5000)

    async def said(self, job_id: str) -> list[str]:
        return [event.message for event in await self.events(job_id) if event.kind == "message"]

    async def figures(self, job_id: str) -> list[dict[str, Any]]:
        return [dict(e.data or {}) for e in await self.events(job_id) if e.kind == "metrics"]

    def starts(self, job_id: str) -> list[int]:
        """The pids of all trainers that ever were."""
        return [int(line) for line in (self.places.job(job_id) / "starts").read_text().split()]

    def weights(self, job_id: str, below: str = "out") -> bytes:
        return (self.places.job(job_id) / below / "adapter_model.safetensors").read_bytes()[-32:]

    def let(self, job_id_or_name: str, step: int) -> None:
        (self.places.data / job_id_or_name).write_text(str(step))

    def gate(self, name: str = "gate") -> str:
        return str(self.places.data / name)

    async def close(self) -> None:
        """End every trainer that a test left running."""
        for job in (await self.jobs.list(owner=None, after=None, limit=100)).jobs:
            for left in process.marked(job.id):
                with contextlib.suppress(Exception):
                    left.send_signal(signal.SIGKILL)
        self.db.close()


async def bounded(awaitable: Awaitable[Any], seconds: float = 60.0) -> Any:
    return await asyncio.wait_for(awaitable, seconds)


async def _main(data: Path) -> None:
    shop = Shop(data)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    await shop.worker().run(ending)
    shop.db.close()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
