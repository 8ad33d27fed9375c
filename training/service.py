"""What people do with jobs: create, list, show, cancel, pause, resume, and read what happened.

Writes wishes into the database; the worker (training/worker.py) carries them out and is told by nobody else. Must not
know HTTP doors, processes, or how things are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters.db import Database
from adapters.errors import Conflict, InvalidRequest
from adapters.names import check_public_name
from training import store_jobs as store
from training.ids import mint
from training.types import Checkpoint, Job, JobEvent, JobState, Outcome, Wish

MAX_PRIORITY = 100


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, the newest first, and whether there are older ones."""

    jobs: tuple[Job, ...]
    has_more: bool


class JobService:
    """clock: unix seconds. `owner` everywhere: only that key's jobs exist; None: everybody's, for operators.

    jobs_max: how many unfinished jobs one key may have.
    """

    def __init__(
        self,
        db: Database,
        *,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        jobs_max: int = 16,
    ) -> None:
        self._db = db
        self._clock = clock
        self._random_bytes = random_bytes
        self._jobs_max = jobs_max

    async def create(
        self,
        name: str,
        recipe: Mapping[str, Any],
        *,
        owner: str | None = None,
        request: Mapping[str, Any] | None = None,
        priority: int = 0,
        job_id: str | None = None,
    ) -> Job:
        """A job that waits for its check. `recipe` is taken to be valid (training/recipe.py). InvalidName, Conflict.

        job_id: made by `new_id`, where the adapter's name holds it.
        """
        if abs(priority) > MAX_PRIORITY:
            raise InvalidRequest(f"`priority` is between -{MAX_PRIORITY} and {MAX_PRIORITY}.", param="priority")
        made = Job(
            id=job_id or self.new_id(),
            owner=owner,
            name=check_public_name(name),
            state=JobState.VALIDATING,
            recipe=recipe,
            request=request,
            priority=priority,
            created_at=self._clock(),
        )

        def add(conn: sa.Connection) -> None:
            if owner is not None and store.unfinished(conn, owner) >= self._jobs_max:
                raise Conflict(f"This key has {self._jobs_max} jobs that have not ended. Wait for one, or cancel one.")
            store.add(conn, made)
            store.tell(conn, made.id, made.created_at, f"Created fine-tuning job: {made.id}")
            store.tell(conn, made.id, made.created_at, "Validating the data and the settings")

        await self._db.write(add)
        return made

    def new_id(self) -> str:
        return mint("ftjob-", self._random_bytes)

    async def show(self, job_id: str, owner: str | None = None) -> Job:
        """One job; JobNotFound."""
        return await self._db.read(lambda conn: store.find(conn, job_id, owner))

    async def list(
        self,
        *,
        owner: str | None,
        after: str | None,
        limit: int,
        states: Collection[JobState] = (),
        names: Collection[str] | None = None,
    ) -> Page:
        """The newest first, older than the job `after`, only of the adapters `names`; JobNotFound for `after`."""

        def read(conn: sa.Connection) -> tuple[tuple[Job, ...], bool]:
            return store.page(conn, owner=owner, after=after, limit=limit, states=states, names=names)

        return Page(*await self._db.read(read))

    async def counts(self) -> dict[str, int]:
        """state → how many."""
        return await self._db.read(store.counts)

    async def cancel(self, job_id: str, owner: str | None = None, *, keep: bool = False) -> Job:
        """End it: at once where it does not run, else as soon as the worker has ended it. JobNotFound, Conflict."""
        return await self._wish(job_id, owner, Wish.CANCEL_AND_KEEP if keep else Wish.CANCEL)

    async def pause(self, job_id: str, owner: str | None = None) -> Job:
        """Stop it at a whole checkpoint, to go on from there later. JobNotFound, Conflict."""
        return await self._wish(job_id, owner, Wish.PAUSE)

    async def resume(self, job_id: str, owner: str | None = None) -> Job:
        """Let a paused job queue again. JobNotFound, Conflict."""
        now = self._clock()

        def resume(conn: sa.Connection) -> Job:
            job = store.find(conn, job_id, owner, hold=True)
            if job.wish is Wish.PAUSE:  # not carried out yet: taken back
                changed = store.change(conn, job_id, wish=None)
            else:
                # Where it was paused before its check, that comes first.
                state = JobState.QUEUED if job.settled is not None else JobState.VALIDATING
                changed = store.change(conn, job_id, only={JobState.PAUSED}, state=state, wish=None)
            store.tell(conn, job_id, now, "Resumed")
            return changed

        return await self._db.write(resume)

    async def prioritise(self, job_id: str, priority: int, owner: str | None = None) -> Job:
        """Larger is sooner, among those that wait. JobNotFound, InvalidRequest."""
        if abs(priority) > MAX_PRIORITY:
            raise InvalidRequest(f"`priority` is between -{MAX_PRIORITY} and {MAX_PRIORITY}.", param="priority")

        def prioritise(conn: sa.Connection) -> Job:
            store.find(conn, job_id, owner)
            return store.change(conn, job_id, priority=priority)

        return await self._db.write(prioritise)

    async def events(
        self, job_id: str, owner: str | None = None, *, after: int = 0, limit: int = 1000
    ) -> tuple[JobEvent, ...]:
        """What happened behind the event `after`, oldest first: for whoever follows. JobNotFound."""

        def read(conn: sa.Connection) -> tuple[JobEvent, ...]:
            store.find(conn, job_id, owner)
            return store.told(conn, job_id, after=after, limit=limit)

        return await self._db.read(read)

    async def history(
        self, job_id: str, owner: str | None = None, *, before: int | None, limit: int
    ) -> tuple[tuple[JobEvent, ...], bool]:
        """What happened, the newest first, and whether there is more. JobNotFound."""

        def read(conn: sa.Connection) -> tuple[tuple[JobEvent, ...], bool]:
            store.find(conn, job_id, owner)
            return store.told_last(conn, job_id, before=before, limit=limit)

        return await self._db.read(read)

    async def checkpoints(self, job_id: str, owner: str | None = None) -> tuple[Checkpoint, ...]:
        """All that are on disk, newest first. JobNotFound."""

        def read(conn: sa.Connection) -> tuple[Checkpoint, ...]:
            store.find(conn, job_id, owner)
            return store.list_checkpoints(conn, job_id)

        return await self._db.read(read)

    async def _wish(self, job_id: str, owner: str | None, wish: Wish) -> Job:
        now = self._clock()

        def write(conn: sa.Connection) -> Job:
            job = store.find(conn, job_id, owner, hold=True)  # its worker may be pausing it in this moment
            if job.is_final:
                raise Conflict(f"Job {job_id} is {job.state.value} already.")
            if wish is Wish.PAUSE and job.state is JobState.PAUSED:
                raise Conflict(f"Job {job_id} is paused already.")
            if job.worker is not None:
                store.tell(conn, job_id, now, "Asked to pause" if wish is Wish.PAUSE else "Asked to cancel")
                return store.change(conn, job_id, wish=wish)
            if wish is Wish.PAUSE:
                store.tell(conn, job_id, now, "Paused")
                return store.change(conn, job_id, state=JobState.PAUSED, wish=None)
            store.tell(conn, job_id, now, "Cancelled")
            partial = Outcome.PARTIAL if wish is Wish.CANCEL_AND_KEEP and job.attempts else Outcome.NOTHING
            return store.change(conn, job_id, state=JobState.CANCELLED, wish=None, outcome=partial, finished_at=now)

        return await self._db.write(write)
