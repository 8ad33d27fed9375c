"""Usage: nothing is lost on a normal stop or while the database says no, and sums come out by group."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.db import Database
from gateway import store
from gateway.store import UsageQuery, UsageRow
from gateway.usage import BATCH, UsageRecorder, UsageService, utc_day
from tests import databases

NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC
DAY = "2027-01-15"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    opened = Database.open(database_url)
    try:
        yield opened
    finally:
        opened.close()


def recorder(db: Database, now: list[float], *, flush_s: float = 3600.0, max_pending: int = 1000) -> UsageRecorder:
    return UsageRecorder(db, clock=lambda: now[0], flush_s=flush_s, max_pending=max_pending)


async def rows(db: Database, query: UsageQuery | None = None) -> list[UsageRow]:
    wanted = query or UsageQuery()
    return list((await db.read(lambda conn: store.usage(conn, wanted, skip=0, limit=10_000))).items)


async def written(db: Database) -> list[UsageRow]:
    """The rows, as soon as there are any; gives up after a few seconds."""
    for _ in range(1000):
        if found := await rows(db):
            return found
        await asyncio.sleep(0.005)
    raise AssertionError("nothing was written")


async def test_counts_are_added_up_and_written_on_close(db: Database) -> None:
    async with recorder(db, [NOON]) as usage:
        for _ in range(3):
            usage.record("k1", "base", 10, 5)
        usage.record("k2", "base", 1, 1)
        assert await rows(db) == []
    assert await rows(db) == [UsageRow("k1", "base", DAY, 3, 30, 15), UsageRow("k2", "base", DAY, 1, 1, 1)]


async def test_they_are_written_without_being_asked(db: Database) -> None:
    async with recorder(db, [NOON], flush_s=0.01) as usage:
        usage.record("k1", "base", 10, 5)
        await written(db)
        usage.record("k1", "base", 1, 1)
    assert await rows(db) == [UsageRow("k1", "base", DAY, 2, 11, 6)]


async def test_a_new_utc_day_is_a_new_row_and_a_clock_stepping_back_too(db: Database) -> None:
    now = [NOON]
    async with recorder(db, now) as usage:
        for moment in (NOON, NOON + 43_199, NOON + 43_200, NOON - 86_400):
            now[0] = moment
            usage.record("k1", "base", 1, 1)
    assert [(row.day, row.requests) for row in await rows(db)] == [("2027-01-14", 1), (DAY, 2), ("2027-01-16", 1)]
    assert utc_day(NOON) == DAY


async def test_totals_of_a_day_survive_a_restart(db: Database) -> None:
    now = [NOON]
    async with recorder(db, now) as usage:
        usage.record("k1", "a", 10, 5)
        usage.record("k1", "b", 1, 1)
        usage.record("k2", "a", 100, 0)
        now[0] += 86_400
        usage.record("k1", "a", 7, 7)
    async with recorder(db, now) as usage:
        totals = await usage.daily_totals(DAY)
    assert (totals.keys, totals.models) == ({"k1": 17, "k2": 100}, {"a": 115, "b": 2})


async def rename(db: Database, old: str, new: str) -> None:
    await db.write(lambda conn: conn.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}")))


async def test_a_failed_flush_keeps_everything_and_is_tried_again(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with recorder(db, [NOON]) as usage:
        usage.record("k1", "base", 10, 5)
        await rename(db, "usage_daily", "away")
        assert await usage.flush() is False
        usage.record("k1", "base", 1, 1)
        assert await usage.flush() is False
        assert caplog.text.count("kept in memory") == 1, "said once, not twice a second"
        await rename(db, "away", "usage_daily")
        assert await usage.flush() is True
        assert await rows(db) == [UsageRow("k1", "base", DAY, 2, 11, 6)]
    assert await rows(db) == [UsageRow("k1", "base", DAY, 2, 11, 6)], "written once"
    assert usage.dropped == 0


async def test_memory_is_bounded_while_the_database_says_no(db: Database) -> None:
    await rename(db, "usage_daily", "away")
    async with recorder(db, [NOON], max_pending=10) as usage:
        for number in range(10):
            usage.record(f"k{number}", "base", 1, 1)
        assert await usage.flush() is False
        for number in range(20):
            usage.record(f"k{number}", "base", 1, 1)
        assert usage.dropped == 10, "new groups only"
        await rename(db, "away", "usage_daily")
    assert sum(row.requests for row in await rows(db)) == 20


async def test_reaching_the_bound_flushes_at_once(db: Database) -> None:
    async with recorder(db, [NOON], max_pending=5) as usage:
        for number in range(6):
            usage.record(f"k{number}", "base", 1, 1)
        await written(db)
    assert len(await rows(db)) == 6


async def test_a_cancelled_flush_counts_once(db: Database) -> None:
    async with recorder(db, [NOON]) as usage:
        for turn in range(20):
            usage.record("k1", "base", 1, 1)
            flush = asyncio.create_task(usage.flush())
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            flush.cancel()
            await asyncio.gather(flush, return_exceptions=True)
    assert [row.requests for row in await rows(db)] == [20]


async def test_more_rows_than_a_batch(db: Database) -> None:
    count = BATCH + 10
    async with recorder(db, [NOON], max_pending=10 * BATCH) as usage:
        for number in range(count):
            usage.record(f"k{number}", "base", 1, 2)
    assert await rows(db, UsageQuery(group_by=())) == [UsageRow(None, None, None, count, count, 2 * count)]


async def test_questions_see_what_is_not_written_yet_by_any_group(db: Database) -> None:
    now = [NOON]
    async with recorder(db, now) as usage:
        for key, model in (("k1", "a"), ("k1", "b"), ("k2", "a")):
            usage.record(key, model, 1, 1)
        now[0] += 86_400
        usage.record("k1", "a", 5, 5)
        service = UsageService(db, usage)

        async def ask(query: UsageQuery) -> list[tuple[object, ...]]:
            page = await service.query(query, skip=0, limit=10)
            return [(row.key, row.model, row.day, row.requests) for row in page.items]

        assert await ask(UsageQuery(group_by=("key",))) == [("k1", None, None, 3), ("k2", None, None, 1)]
        assert await ask(UsageQuery(group_by=("day", "model"), since="2027-01-16")) == [(None, "a", "2027-01-16", 1)]
        assert await ask(UsageQuery(group_by=(), until=DAY, key="k1")) == [(None, None, None, 2)]
        assert await ask(UsageQuery(group_by=("key",), model="b")) == [("k1", None, None, 1)]
        assert await ask(UsageQuery(group_by=(), key="nobody")) == []
        first = await service.query(UsageQuery(), skip=0, limit=3)
        rest = await service.query(UsageQuery(), skip=3, limit=3)
        assert (len(first.items), first.has_more, len(rest.items), rest.has_more) == (3, True, 1, False)


CHILD = """
import asyncio, sys, time
from adapters.db import Database
from gateway.usage import UsageRecorder

async def main():
    db = Database.open("sqlite:///" + sys.argv[1])
    db.migrate()
    async with UsageRecorder(db, clock=time.time, flush_s=0.05, max_pending=1000) as usage:
        while True:
            usage.record("k", "m", 1, 1)
            print("x", flush=True)
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


async def test_kill_9_loses_the_last_interval_and_nothing_else(tmp_path: Path) -> None:
    db = Database.open(databases.sqlite(tmp_path / "killed.db"))
    argv = (sys.executable, "-c", CHILD, str(tmp_path / "killed.db"))
    child = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    try:
        assert child.stdout is not None
        written = recorded = 0
        async with asyncio.timeout(60):
            while written < 200:  # some intervals, written without being asked
                assert await child.stdout.readline()
                recorded += 1
                written = sum(row.requests for row in await rows(db))
        child.send_signal(signal.SIGKILL)
        recorded += (await child.stdout.read()).count(b"\n")
        await child.wait()
        (row,) = await rows(db)
        assert written <= row.requests <= recorded + 1, "what was written stays, and nothing is there twice"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        db.close()
