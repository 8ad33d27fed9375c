"""Keeps the Snapshot that every request reads what the database says, and swaps it whole.

A change is noticed by one cheap query every half second (a revoked key of another process ends within 1 s), or
at once when this process made it. A process that was stopped, or its machine, wakes with a snapshot of long ago: then
requests wait for one look. Must not know what a snapshot is made of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from adapters import revision
from adapters.db import Database
from adapters.errors import ServiceError
from gateway.assembly import assemble
from gateway.settings import ModelLimits, Settings
from gateway.v1.snapshot import EMPTY, Limits, Snapshot

log = logging.getLogger("loragate.refresh")

POLL_S = 0.5
STALE_S = 2.0  # a look of before says nothing about now
CATCH_UP_S = 1.0  # requests wait no longer for the database; then they go on with what is known
NEVER = float("inf")


class Refresher:
    """swap: takes the new snapshot. base: what the engines call the base, None until one has said it.

    clock: monotonic seconds. fresh: told until when requests may go by the snapshot without asking `catch_up`.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        swap: Callable[[Snapshot], None],
        base: Callable[[], str | None],
        wall: Callable[[], float],
        clock: Callable[[], float],
        fresh: Callable[[float], None],
    ) -> None:
        self._db = db
        self._limits = {name: configured(given) for name, given in settings.model_limits.items()}
        self._swap = swap
        self._base = base
        self._wall = wall
        self._clock = clock
        self._fresh = fresh
        self._seen: tuple[int, str | None] = (-1, None)
        self._read_at = 0.0  # unix seconds
        self._one_at_a_time = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._catching: asyncio.Task[None] | None = None
        self.trouble: str | None = None  # why the registry cannot be read now
        self.snapshot = EMPTY

    async def __aenter__(self) -> Refresher:
        await self.refresh()
        self._task = asyncio.create_task(self._watch(), name="refresh")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._task, self._catching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def revision(self) -> int:
        """Of the registry, as requests see it; -1 before the first look."""
        return self._seen[0]

    async def refresh(self) -> None:
        """Look, and swap the snapshot if anything changed; returns once the change is what requests see."""
        async with self._one_at_a_time:
            base, looked_at = self._base(), self._clock()
            seen = (await revision.current(self._db), base)
            before, now = self.snapshot, self._wall()
            # A clock that was set back: keys that had expired by the wrong time have not.
            if seen != self._seen or now < self._read_at:
                snapshot = await self._db.read(lambda conn: assemble(conn, before, base, self._limits, now))
                # Read before the rows were: a change in between only means one more look.
                self._seen, self._read_at = seen, now
                self.snapshot = snapshot
                self._swap(snapshot)
            self._fresh(looked_at + STALE_S)

    def catch_up(self) -> asyncio.Future[None]:
        """Done after one look, or when it has taken too long; all who ask at once share it. Never fails."""
        if self._catching is None or self._catching.done():
            self._catching = asyncio.get_running_loop().create_task(self._catch_up(), name="catch up")
        return self._catching

    async def _catch_up(self) -> None:
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self.refresh()
        except Exception:  # whatever it is, the loop below meets it too, and says so
            self._fresh(NEVER)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
                self.trouble = None
            except ServiceError as error:
                self._failed(error.message)
            except Exception as error:  # a row changed by hand, for one: the loop must live to see it mended
                self._failed(f"a row in it is not as this program writes it ({type(error).__name__})", error)

    def _failed(self, why: str, cause: Exception | None = None) -> None:
        """Known keys and models keep working from memory; /readyz turns red."""
        if self.trouble is None:
            log.warning("the registry cannot be read: %s", why, exc_info=cause)
        self.trouble = f"the registry cannot be read: {why}"
        self._fresh(NEVER)


def configured(given: ModelLimits) -> Limits:
    """The limits that the settings give a model."""
    return Limits(given.rpm, given.tpm, given.concurrency, given.daily_tokens)
