"""What callers say about answers: kept for so long, at most so many of each key, and forgotten on demand.

Must not know HTTP, what a conversation looks like, or who may do what. What is said is never logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from adapters.db import Database
from adapters.errors import ServiceError
from training import store_feedback as store
from training.errors import FeedbackFull
from training.store_feedback import Feedback, Wanted

log = logging.getLogger("loragate.feedback")

SWEEP_S = 3600.0
DAY_S = 86_400.0


class FeedbackService:
    """keep_s: how long it is kept, None: for ever; most: rows that one key may have here. clock: unix seconds.

    While it is open (async with), what is too old goes once an hour.
    """

    def __init__(
        self,
        db: Database,
        *,
        clock: Callable[[], float],
        keep_s: float | None,
        most: int,
        sweep_s: float = SWEEP_S,
    ) -> None:
        self._db = db
        self._clock = clock
        self._keep_s = keep_s
        self._most = most
        self._sweep_s = sweep_s
        # Rows of each key: counted at its first feedback, once an hour, and after every removal; else added up, because
        # the table has no index for it. What another gateway takes meanwhile is seen an hour later.
        self._rows: dict[str, int] = {}
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FeedbackService:
        self._task = asyncio.create_task(self._run(), name="feedback-sweep")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def add(self, owner: str, model: str, version: str | None, body: Mapping[str, Any]) -> Feedback:
        """Keep what a key says; FeedbackFull."""
        if owner not in self._rows:
            self._rows[owner] = await self._db.read(lambda conn: store.count(conn, owner))
        if self._rows[owner] >= self._most:
            raise FeedbackFull(
                f"This key has sent the {self._most} pieces of feedback that are kept of one key. "
                "Ask the operator to export and remove some.",
                retryable=False,
            )
        self._rows[owner] += 1
        try:
            return await self._db.write(
                lambda conn: store.add(conn, at=self._clock(), owner=owner, model=model, version=version, body=body)
            )
        except BaseException:
            self._rows.pop(owner, None)
            raise

    async def page(self, wanted: Wanted, after: int, limit: int) -> tuple[tuple[Feedback, ...], bool]:
        """Oldest first, those behind the id `after`, and whether there are more."""
        return await self._db.read(lambda conn: store.page(conn, wanted, after, limit))

    async def remove(self, feedback_id: int, owner: str | None = None) -> Feedback:
        """Forget one; NotFound, also where it is not `owner`'s (None: whoever's)."""

        def forget(conn: Any) -> Feedback:
            found = store.find(conn, feedback_id, owner)
            store.remove(conn, feedback_id)
            return found

        gone = await self._db.write(forget)
        self._rows.clear()
        return gone

    async def clear(self, wanted: Wanted) -> int:
        """Forget all that is wanted; how many that were."""
        removed = await self._db.write(lambda conn: store.clear(conn, wanted))
        self._rows.clear()
        return removed

    async def sweep(self) -> int:
        """Forget what is too old; how many that were."""
        self._rows.clear()
        if self._keep_s is None:
            return 0
        oldest = self._clock() - self._keep_s
        return await self._db.write(lambda conn: store.forget_before(conn, oldest))

    async def _run(self) -> None:
        while not self._closing.is_set():
            try:
                gone = await self.sweep()
                if gone:
                    log.info("%d pieces of feedback were too old and are removed", gone)
            except ServiceError as error:
                log.warning("old feedback could not be removed: %s", error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sweep_s):
                    await self._closing.wait()
