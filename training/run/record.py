"""What a worker writes into the database, with patience: a database that is away or full for a while ends no run.

Must not know processes or files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import sqlalchemy as sa

from adapters.db import Database
from adapters.errors import StorageFull, Unavailable
from training import store_jobs as store
from training.steps import Tell
from training.types import Job, JobState, Outcome, Phase, Problem, Wish

T = TypeVar("T")
PATIENCE_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_log = logging.getLogger(__name__)


class Record:
    """`worker`: whose jobs these are; clock: unix seconds."""

    def __init__(self, db: Database, worker: str, clock: Callable[[], float]) -> None:
        self._db = db
        self.worker = worker
        self.clock = clock

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """One transaction, tried again until the database takes it."""
        return await self._patiently(self._db.write, work)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._patiently(self._db.read, work)

    async def held(self) -> tuple[Job, ...]:
        """Our jobs, with what is wished of them."""
        return await self.read(lambda conn: store.held(conn, self.worker))

    async def seen(self) -> None:
        """We are there."""
        await self.write(lambda conn: store.seen(conn, self.worker, self.clock()))

    async def take(self, state: JobState) -> Job | None:
        """The next job that waits in `state`; ours from now on."""
        if not (await self.read(store.counts)).get(state.value):  # most of the time: without the write lock
            return None
        return await self.write(lambda conn: store.take(conn, state, self.worker, self.clock()))

    async def job(self, job_id: str) -> Job:
        return await self.read(lambda conn: store.find(conn, job_id))

    async def change(self, job_id: str, **fields: Any) -> Job:
        return await self.write(lambda conn: store.change(conn, job_id, **fields))

    async def tell(
        self,
        job_id: str,
        message: str,
        *,
        level: str = "info",
        kind: str = "message",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        now = self.clock()
        await self.write(lambda conn: store.tell(conn, job_id, now, message, level=level, kind=kind, data=data))

    def teller(self, job_id: str) -> Tell:
        """`tell` for one job."""

        async def tell(
            message: str, *, level: str = "info", kind: str = "message", data: Mapping[str, Any] | None = None
        ) -> None:
            await self.tell(job_id, message, level=level, kind=kind, data=data)

        return tell

    async def phase(self, job_id: str, phase: Phase) -> None:
        """A running job does something else now."""

        def write(conn: sa.Connection) -> None:
            store.change(conn, job_id, phase=phase)
            store.tell(conn, job_id, self.clock(), phase.value.capitalize())

        await self.write(write)

    async def checked(self, job_id: str, settled: Mapping[str, Any]) -> None:
        """It may run as soon as there is room, unless something else was wished meanwhile."""

        def write(conn: sa.Connection) -> None:
            wish = store.find(conn, job_id, hold=True).wish
            if wish in (Wish.CANCEL, Wish.CANCEL_AND_KEEP):
                self._cancelled(conn, job_id, Outcome.NOTHING)
                return
            state = JobState.PAUSED if wish is Wish.PAUSE else JobState.QUEUED
            store.change(conn, job_id, state=state, settled=settled, worker=None, wish=None)
            text = "Files and settings validated, "
            text += "paused as asked" if wish is Wish.PAUSE else "moving job to queued state"
            store.tell(conn, job_id, self.clock(), text)

        await self.write(write)

    async def started(self, job_id: str) -> None:
        """It runs, unless it did already."""

        def write(conn: sa.Connection) -> None:
            job = store.find(conn, job_id, hold=True)
            if job.state is not JobState.RUNNING:
                began = job.started_at if job.started_at is not None else self.clock()
                store.change(conn, job_id, state=JobState.RUNNING, phase=Phase.PREPARING, started_at=began)
                store.tell(conn, job_id, self.clock(), "Fine-tuning job started")

        await self.write(write)

    async def attempt(self, job_id: str, message: str, *, level: str = "info") -> None:
        """The trainer was started once more."""

        def write(conn: sa.Connection) -> None:
            attempts = store.find(conn, job_id, hold=True).attempts + 1
            store.change(conn, job_id, phase=Phase.TRAINING, attempts=attempts)
            store.tell(conn, job_id, self.clock(), message, level=level)

        await self.write(write)

    async def succeeded(self, job_id: str, outcome: Outcome, result: Mapping[str, Any]) -> None:
        def write(conn: sa.Connection) -> None:
            self._end(conn, job_id, JobState.SUCCEEDED, outcome=outcome, result=result)
            store.tell(conn, job_id, self.clock(), "The job has successfully completed")

        await self.write(write)

    async def failed(self, job_id: str, problem: Problem, outcome: Outcome) -> None:
        def write(conn: sa.Connection) -> None:
            self._end(conn, job_id, JobState.FAILED, outcome=outcome, error=problem)
            data = {"code": problem.code, "try_this": dict(problem.try_this)}
            store.tell(conn, job_id, self.clock(), problem.message, level="error", data=data)

        await self.write(write)

    async def cancelled(self, job_id: str, outcome: Outcome) -> None:
        await self.write(lambda conn: self._cancelled(conn, job_id, outcome))

    async def paused(self, job_id: str, message: str) -> bool:
        """Stopped until somebody says resume; False where the wish was taken back or outdone meanwhile."""

        def write(conn: sa.Connection) -> bool:
            if store.find(conn, job_id, hold=True).wish is not Wish.PAUSE:
                return False
            store.change(conn, job_id, state=JobState.PAUSED, phase=None, worker=None, wish=None)
            store.tell(conn, job_id, self.clock(), message)
            return True

        return await self.write(write)

    async def queued(self, job_id: str, state: JobState, message: str | None) -> None:
        """Nobody's again: whoever has room may take it, unless something else was wished meanwhile."""

        def write(conn: sa.Connection) -> None:
            job = store.find(conn, job_id, hold=True)
            if job.wish in (Wish.CANCEL, Wish.CANCEL_AND_KEEP):
                kept = job.wish is Wish.CANCEL_AND_KEEP and job.attempts
                self._cancelled(conn, job_id, Outcome.PARTIAL if kept else Outcome.NOTHING)
                return
            to = JobState.PAUSED if job.wish is Wish.PAUSE else state
            store.change(conn, job_id, state=to, phase=None, worker=None, wish=None)
            if message is not None:
                store.tell(conn, job_id, self.clock(), message)

        await self.write(write)

    def _cancelled(self, conn: sa.Connection, job_id: str, outcome: Outcome) -> None:
        self._end(conn, job_id, JobState.CANCELLED, outcome=outcome)
        if outcome is Outcome.NOTHING:
            forget_checkpoints(conn, job_id)
        kept = ": what was trained so far is kept in the job's folder" if outcome is Outcome.PARTIAL else ""
        store.tell(conn, job_id, self.clock(), f"Cancelled{kept}")

    def _end(self, conn: sa.Connection, job_id: str, state: JobState, **fields: Any) -> None:
        ended: dict[str, Any] = {"finished_at": self.clock(), "phase": None, "wish": None, "worker": None}
        store.change(conn, job_id, state=state, **ended, **fields)

    async def _patiently(self, ask: Callable[[Callable[[sa.Connection], T]], Any], work: Callable[..., T]) -> T:
        tries = 0
        while True:
            try:
                answer: T = await ask(work)
                return answer
            except (Unavailable, StorageFull) as exc:
                if tries % 20 == 0:
                    _log.warning("the database is not to be had, trying again: %s", exc.message)
                await asyncio.sleep(PATIENCE_S[min(tries, len(PATIENCE_S) - 1)])
                tries += 1


def forget_checkpoints(conn: sa.Connection, job_id: str) -> None:
    """None is on disk any more."""
    for checkpoint in store.list_checkpoints(conn, job_id):
        store.forget_checkpoint(conn, job_id, checkpoint.step)
