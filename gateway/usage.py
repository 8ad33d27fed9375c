"""Usage per key, model and UTC day: counted in memory by the data plane, written behind in batches, shown to people.

`kill -9` loses at most one flush interval; a normal stop loses nothing. Must not know HTTP or what a token costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

from adapters.db import Database
from gateway import store
from gateway.store import Page, UsageQuery, UsageRow

__all__ = ["DayTotals", "UsageQuery", "UsageRecorder", "UsageRow", "UsageService", "utc_day"]

log = logging.getLogger("loragate.usage")

DAY_S = 86_400
BATCH = 2_000  # rows per transaction: about 10 ms, so that other writers are not kept waiting
CLOSE_ATTEMPTS = 3
CLOSE_S = 5.0  # for a database that does not answer
QUERY_S = 2.0  # what is asked for waits so long for the last second of usage to be written


@dataclass(frozen=True, slots=True)
class DayTotals:
    """Tokens used on one UTC day, prompt and answer together."""

    keys: dict[str, int]
    models: dict[str, int]


class UsageRecorder:
    """Adds up what was used and writes it behind. clock: unix seconds.

    max_pending bounds the (key, model, day) rows in memory: reaching it starts a flush at once, and if the database
    does not take them, rows of new groups are dropped and counted in `dropped`.
    """

    def __init__(self, db: Database, *, clock: Callable[[], float], flush_s: float, max_pending: int) -> None:
        self.dropped = 0  # requests whose usage could not be kept
        self._db = db
        self._clock = clock
        self._flush_s = flush_s
        self._max_pending = max_pending
        self._pending: dict[tuple[str, str, str], list[int]] = {}
        self._day = ""
        self._day_ends = 0.0
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._flushes: set[asyncio.Task[bool]] = set()
        self._closing = False
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> UsageRecorder:
        self._task = asyncio.create_task(self._run(), name="usage-flush")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def record(self, key_id: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one answered request. Synchronous, below 1 µs, never fails."""
        now = self._clock()
        if not self._day_ends - DAY_S <= now < self._day_ends:
            self._turn_day(now)
        group = (key_id, model, self._day)
        row = self._pending.get(group)
        if row is None:
            row = self._new_row(group)
        row[0] += 1
        row[1] += prompt_tokens
        row[2] += completion_tokens

    async def flush(self) -> bool:
        """Write what is pending now; False if the database did not take it (it is kept and tried again).

        A caller that is cancelled leaves the write to end by itself: half known is how counts get doubled.
        """
        if not self._pending and not self._writing.locked():
            return True
        task = asyncio.create_task(self._flush())
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Stop the flush task and write what is left, trying three times; what still cannot be written is logged."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                for _ in range(CLOSE_ATTEMPTS):
                    if await self.flush():
                        return
        log.error("usage of %d requests could not be written", sum(row[0] for row in self._pending.values()))

    async def daily_totals(self, day: str) -> DayTotals:
        """What was written for one day, YYYY-MM-DD: so that daily budgets survive a restart."""
        totals = DayTotals({}, {})
        for key_id, model, tokens in await self._db.read(lambda conn: store.day_totals(conn, day)):
            totals.keys[key_id] = totals.keys.get(key_id, 0) + tokens
            totals.models[model] = totals.models.get(model, 0) + tokens
        return totals

    async def _run(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def _flush(self) -> bool:
        async with self._writing:
            groups = list(self._pending)  # what comes while this is written waits for the next flush
            for start in range(0, len(groups), BATCH):
                # Taken out before the write, so that what comes meanwhile starts a row of its own.
                batch = [UsageRow(*group, *self._pending.pop(group)) for group in groups[start : start + BATCH]]
                if not await self._write(batch):
                    return False
        return True

    async def _write(self, batch: list[UsageRow]) -> bool:
        try:
            await self._db.write(lambda conn: store.add_usage(conn, batch), endless=True)
        except Exception as exc:  # whatever the database says, the counts must live
            self._put_back(batch)
            if not self._failing:
                log.warning("usage cannot be written and is kept in memory: %s", type(exc).__name__)
            self._failing = True
            return False
        self._failing = False
        return True

    def _put_back(self, batch: list[UsageRow]) -> None:
        for row in batch:
            kept = self._pending.setdefault((row.key or "", row.model or "", row.day or ""), [0, 0, 0])
            kept[0] += row.requests
            kept[1] += row.prompt_tokens
            kept[2] += row.completion_tokens

    def _new_row(self, group: tuple[str, str, str]) -> list[int]:
        if len(self._pending) >= self._max_pending:
            self._wake.set()
            if self._failing:
                self.dropped += 1
                return [0, 0, 0]  # counted into nothing
        row = self._pending[group] = [0, 0, 0]
        return row

    def _turn_day(self, now: float) -> None:
        self._day = utc_day(now)
        self._day_ends = (now // DAY_S + 1) * DAY_S


class UsageService:
    """Answers what was used. Writes out what is pending first, so that an answer includes the last second."""

    def __init__(self, db: Database, recorder: UsageRecorder) -> None:
        self._db = db
        self._recorder = recorder

    async def query(self, query: UsageQuery, *, skip: int, limit: int) -> Page[UsageRow]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUERY_S):
                await self._recorder.flush()
        return await self._db.read(lambda conn: store.usage(conn, query, skip=skip, limit=limit))


def utc_day(now: float) -> str:
    """YYYY-MM-DD of a unix time, in UTC."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()
