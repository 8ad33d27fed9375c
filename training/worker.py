"""The queue's worker: takes jobs, one run a device and one check at a time, says that it is there, and hears wishes.

One per data directory (its door holds the lock). What it held when it ended or was killed is its own again at the next
start: a trainer that lives is watched on, one that is gone goes on from its newest whole checkpoint. Must not know
what is done for a job (training/run/carrier.py, training/steps.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from training import store_jobs as store
from training.errors import JobNotFound
from training.places import Places
from training.run import process
from training.run.carrier import Carrier, Workshop
from training.run.gpu import CPU
from training.run.record import forget_checkpoints
from training.types import Job, JobState, Outcome

CARRIED = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds between two looks at the queue and at wishes, between two signs of life, until a fault is tried again."""

    look_s: float = 1.0
    beat_s: float = 5.0
    again_s: float = 30.0


class Worker:
    """devices: one CUDA_VISIBLE_DEVICES for each run that may go on at once; "" is the processor."""

    def __init__(self, workshop: Workshop, devices: Sequence[str] = (CPU,), *, rhythm: Rhythm | None = None) -> None:
        self._shop = workshop
        self._record = workshop.record
        self._devices = tuple(devices)
        self._rhythm = rhythm or Rhythm()
        self._runs: dict[str, tuple[Carrier, asyncio.Task[None]]] = {}
        self._checks: dict[str, tuple[Carrier, asyncio.Task[None]]] = {}
        self._not_before: dict[str, float] = {}
        self._carried: dict[str, None] = {}

    @property
    def carried(self) -> tuple[str, ...]:
        """The jobs that it did anything for, the last CARRIED of them."""
        return tuple(self._carried)

    async def run(self, ending: asyncio.Event, *, once: bool = False, stop_runs: bool = False) -> None:
        """Until `ending` is set; `once`: until nothing is left to do.

        At the end runs go on by themselves; with `stop_runs` they stop at a checkpoint and queue again.
        """
        beat = asyncio.create_task(self._beat())
        try:
            await self._recover()
            while not ending.is_set():
                await self._hear()
                await self._fill()
                if once and not self._runs and not self._checks:
                    return
                await self._rest(ending)
            if stop_runs:
                await self._stop_runs()
        finally:
            tasks = [beat, *(task for _, task in (*self._runs.values(), *self._checks.values()))]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _recover(self) -> None:
        """What this worker had when it ended last, and what was thrown away while it was not there."""
        for job in await self._record.held():
            await self._again(job)
        await self._throw_away()

    async def _again(self, job: Job) -> None:
        """Carry on with a job that is ours."""
        if job.is_final or job.state is JobState.PAUSED:
            await self._record.change(job.id, worker=None)
        elif job.state is JobState.VALIDATING:
            self._begin(self._checks, Carrier(self._shop, job), Carrier.check)
        else:
            known = await asyncio.to_thread(process.read, self._shop.places.job(job.id))
            living = known is not None and await asyncio.to_thread(process.alive, known)
            device = known.device if living and known is not None else self._room(job)
            if device is None:  # fewer devices than before
                await self._record.queued(job.id, JobState.QUEUED, None)
            else:
                self._begin(self._runs, Carrier(self._shop, job, device), Carrier.run)

    async def _hear(self) -> None:
        """Tell every job that is carried what is wished of it; one whose carrier failed is carried again."""
        self._reap()
        now = asyncio.get_running_loop().time()
        for job in await self._record.held():
            carried = self._runs.get(job.id) or self._checks.get(job.id)
            if carried is not None:
                carried[0].wish(job.wish)
            elif now >= self._not_before.get(job.id, 0.0):
                await self._again(job)

    async def _fill(self) -> None:
        """Take what there is room for."""
        while not self._checks:
            job = await self._record.take(JobState.VALIDATING)
            if job is None:
                break
            self._begin(self._checks, Carrier(self._shop, job), Carrier.check)
        while self._free() is not None:
            job = await self._record.take(JobState.QUEUED)
            if job is None:
                break
            device = self._room(job)
            if device is None:  # it wants several, and those behind it wait until they are free
                await self._record.queued(job.id, JobState.QUEUED, None)
                break
            self._begin(self._runs, Carrier(self._shop, job, device), Carrier.run)

    def _room(self, job: Job) -> str | None:
        """The devices for a job, as many as its plan says (`gpus`), but not more than there are."""
        wanted = (job.settled or {}).get("gpus")
        return self._free(min(wanted, len(self._devices)) if isinstance(wanted, int) and wanted > 1 else 1)

    def _free(self, count: int = 1) -> str | None:
        """So many devices that nothing runs on, as CUDA_VISIBLE_DEVICES."""
        carriers = [carrier for carrier, _ in self._runs.values() if carrier.device is not None]
        used = {device for carrier in carriers for device in (carrier.device or "").split(",")}
        free = [device for device in self._devices if device not in used]
        return ",".join(free[:count]) if len(free) >= count else None

    def _begin(
        self,
        where: dict[str, tuple[Carrier, asyncio.Task[None]]],
        carrier: Carrier,
        work: Callable[[Carrier], Coroutine[Any, Any, None]],
    ) -> None:
        self._carried[carrier.job_id] = None
        while len(self._carried) > CARRIED:
            del self._carried[next(iter(self._carried))]
        where[carrier.job_id] = carrier, asyncio.create_task(work(carrier))

    def _reap(self) -> None:
        for where in (self._runs, self._checks):
            for job_id, (_, task) in list(where.items()):
                if task.done():
                    del where[job_id]
                    if not task.cancelled() and task.exception() is not None:
                        _log.error("job %s could not be carried on", job_id, exc_info=task.exception())
                        later = asyncio.get_running_loop().time() + self._rhythm.again_s
                        self._not_before[job_id] = later

    async def _rest(self, ending: asyncio.Event) -> None:
        """Until something is done or the next look is due."""
        woken = asyncio.ensure_future(ending.wait())
        tasks = {task for _, task in (*self._runs.values(), *self._checks.values())}
        try:
            await asyncio.wait({woken, *tasks}, timeout=self._rhythm.look_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            await asyncio.gather(woken, return_exceptions=True)

    async def _stop_runs(self) -> None:
        for carrier, _ in self._runs.values():
            carrier.give_up()
        if self._runs:
            await asyncio.wait([task for _, task in self._runs.values()])

    async def _beat(self) -> None:
        while True:
            if self._runs or self._checks:
                await self._record.seen()
            await asyncio.sleep(self._rhythm.beat_s)

    async def _throw_away(self) -> None:
        """What jobs had trained that were cancelled while nobody carried them."""
        jobs = self._shop.places.jobs
        trained = await asyncio.to_thread(lambda: [folder.parent for folder in jobs.glob("*/out")])

        def cancelled(conn: sa.Connection) -> list[Path]:
            return [folder for folder in trained if _thrown(conn, folder.name)]

        for folder in await self._record.read(cancelled):
            await asyncio.to_thread(shutil.rmtree, folder / "out", ignore_errors=True)
            await self._record.write(partial(forget_checkpoints, job_id=folder.name))


def _thrown(conn: sa.Connection, job_id: str) -> bool:
    try:
        job = store.find(conn, job_id)
    except JobNotFound:
        return False  # not known here: not ours to delete
    return job.state is JobState.CANCELLED and job.outcome is Outcome.NOTHING


def identity(places: Places, random_bytes: Callable[[int], bytes]) -> str:
    """Who the worker of this data directory is: made at its first start, kept in the directory."""
    try:
        known = places.worker_id.read_text(encoding="ascii").strip()
        if known:
            return known
    except FileNotFoundError:
        pass
    places.worker_id.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = f"worker-{random_bytes(8).hex()}"
    fresh = places.worker_id.with_name(f".{places.worker_id.name}.{os.getpid()}")
    fresh.write_text(made + "\n", encoding="ascii")
    os.replace(fresh, places.worker_id)
    return made
