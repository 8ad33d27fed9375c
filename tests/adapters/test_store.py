"""The room's SQL, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import sqlalchemy as sa

from adapters import revision, store
from adapters.db import Database
from adapters.errors import Conflict, NotFound
from adapters.store import Wish
from adapters.store_history import events, history
from adapters.types import Canary, Rules, Served, Version, VersionState


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    opened = Database.open(database_url)
    yield opened
    opened.close()


def _version(name: str, number: int, base: str | None = "demo-base") -> Version:
    digest = f"{number:064x}"[::-1]
    return Version(
        name=name,
        version=digest[:12],
        digest=digest,
        engine_name=f"{name.replace(':', '-')}@{digest[:12]}",
        base=base,
        rank=8,
        size_bytes=2**33,
        source="/runs/a",
        notes="",
        created_at=1_800_000_000.25 + number,
        state=VersionState.READY,
    )


def _served(conn: sa.Connection) -> tuple[Served, ...]:
    return tuple(store.served(conn))


async def _add(db: Database, *versions: Version, live: bool = False) -> None:
    def write(conn: sa.Connection) -> None:
        for version in versions:
            store.add(conn, version)
            if live:
                store.point(conn, version.name, version.version, version.created_at, "promoted", by="operator")

    await db.write(write)


async def test_what_goes_in_comes_out(db: Database) -> None:
    one, two = _version("a", 1), _version("a", 2)
    await _add(db, one, two, live=True)
    adapter = await db.read(lambda conn: store.find(conn, "a"))
    assert (adapter.live, adapter.previous) == (two.version, one.version)
    assert [(each.digest, each.size_bytes, each.created_at) for each in adapter.versions] == [
        (two.digest, 2**33, two.created_at),
        (one.digest, 2**33, one.created_at),
    ]
    assert [each.state for each in adapter.versions] == [VersionState.LIVE, VersionState.PREVIOUS]


async def test_adding_twice_is_adding_once(db: Database) -> None:
    one = _version("a", 1)
    assert await db.write(lambda conn: store.add(conn, one)) is True
    assert await db.write(lambda conn: store.add(conn, one)) is False
    assert len((await db.read(lambda conn: store.find(conn, "a"))).versions) == 1


async def test_other_content_under_a_used_engine_name_is_refused_whole(db: Database) -> None:
    one, other = _version("a:b", 1), _version("a-b", 1)
    await _add(db, one)
    clash = Version(**{field: getattr(other, field) for field in other.__slots__} | {"digest": one.version + "f" * 52})
    with pytest.raises(Conflict, match="first 12 digits"):
        await _add(db, clash)
    with pytest.raises(NotFound):
        await db.read(lambda conn: store.find(conn, "a-b"))


async def test_every_change_that_requests_see_grows_the_revision(db: Database) -> None:
    one, two = _version("a", 1), _version("a", 2)
    seen = [await revision.current(db)]
    await _add(db, one, two)
    seen.append(await revision.current(db))
    await db.write(lambda conn: store.point(conn, "a", two.version, 1.0, "promoted", by="operator"))
    seen.append(await revision.current(db))
    await db.write(lambda conn: store.set_damaged(conn, [one.engine_name]))
    seen.append(await revision.current(db))
    await db.write(lambda conn: store.remove(conn, "a", None, 2.0))
    seen.append(await revision.current(db))
    assert seen == sorted(set(seen))
    await db.write(lambda conn: store.set_damaged(conn, []))
    assert await revision.current(db) == seen[-1]


async def test_a_canary_that_is_said_again_goes_on_and_one_that_began_anew_is_another(db: Database) -> None:
    one, two = _version("a", 1), _version("a", 2)
    await _add(db, one, live=True)
    await _add(db, two)

    async def begin(percent: float, since: float, rules: Rules = Rules()) -> Canary | None:  # noqa: B008
        canary = Canary(two.version, percent, since, rules)
        await db.write(lambda conn: store.set_canary(conn, "a", canary, since, by="operator"))
        return (await db.read(lambda conn: store.find(conn, "a"))).canary

    async def end(since: float) -> bool:
        only = two.version
        return await db.write(lambda conn: store.end_canary(conn, "a", 9.0, by="gateway", only=only, since=since))

    first = await begin(10, 1.0)
    assert await begin(10, 2.0) == first, "what is said again every minute is judged all the same"
    assert await begin(20, 3.0) == Canary(two.version, 20, 3.0, Rules())
    assert await begin(20, 4.0, Rules(min_requests=5)) == Canary(two.version, 20, 4.0, Rules(min_requests=5))
    assert not await end(3.0)
    assert await end(4.0)
    said = [event.what for event in (await db.read(lambda conn: history(conn, "a", None, 9)))[0]]
    assert said[:-3] == ["canary ended", "canary 20 %", "canary 20 %", "canary 10 %", "canary 10 %"]


async def test_what_routing_reads_and_what_is_damaged(db: Database) -> None:
    one, two = _version("a", 1), _version("b", 2, base=None)
    await _add(db, one, live=True)
    await _add(db, two)
    expected = {
        Served("a", one.version, one.engine_name, "demo-base", True, one.created_at),
        Served("b", two.version, two.engine_name, None, False, two.created_at),
    }
    assert set(await db.read(_served)) == expected
    await db.write(lambda conn: store.set_damaged(conn, [one.engine_name]))
    assert [row.name for row in await db.read(_served)] == ["b"]
    await db.write(lambda conn: store.set_damaged(conn, []))
    assert set(await db.read(_served)) == expected


async def test_what_is_wanted(db: Database) -> None:
    old, previous, live, spare = (_version("a", number) for number in range(1, 5))
    await _add(db, old, previous, live, live=True)
    await _add(db, spare)

    async def wanted(limit: int = 10) -> list[str]:
        return [each.engine_name for each in await db.read(lambda conn: store.wanted(conn, limit))]

    assert await wanted() == [live.engine_name, previous.engine_name]
    await db.write(lambda conn: store.set_wish(conn, spare, Wish.LOADED, 1.0))
    assert await wanted() == [spare.engine_name, live.engine_name, previous.engine_name]
    assert await wanted(1) == [spare.engine_name]
    await db.write(lambda conn: store.set_wish(conn, previous, Wish.UNLOADED, 1.0))
    assert await wanted() == [spare.engine_name, live.engine_name]
    await db.write(lambda conn: store.point(conn, "a", previous.version, 9.0, "rolled back", by="operator"))
    assert await wanted() == [spare.engine_name, previous.engine_name, live.engine_name]


async def test_removed_names_are_remembered_until_they_come_back(db: Database) -> None:
    one = _version("a", 1)
    names = [one.engine_name, "never@000000000000", *(f"x{at}@000000000000" for at in range(1200))]
    await _add(db, one)
    assert await db.read(lambda conn: store.removed(conn, names)) == frozenset()
    assert await db.read(lambda conn: store.known(conn, names)) == {one.engine_name}
    await db.write(lambda conn: store.remove(conn, "a", one.version, 2.0))
    assert await db.read(lambda conn: store.removed(conn, names)) == {one.engine_name}
    await _add(db, one)
    assert await db.read(lambda conn: store.removed(conn, names)) == frozenset()


async def test_removing_the_previous_version_leaves_no_pointer(db: Database) -> None:
    one, two = _version("a", 1), _version("a", 2)
    await _add(db, one, two, live=True)
    await db.write(lambda conn: store.remove(conn, "a", one.version, 3.0))
    adapter = await db.read(lambda conn: store.find(conn, "a"))
    assert (adapter.live, adapter.previous) == (two.version, None)


async def test_pages_reach_every_adapter_once_whatever_the_collation(db: Database) -> None:
    names = ["B", "a", "b", "b-c", "b.c", "b:c", "c"]
    for number, name in enumerate(reversed(names)):
        await _add(db, _version(name, number + 1))
    got: list[str] = []
    more = True
    while more:
        page, more = await db.read(partial(store.page, after=got[-1] if got else None, limit=3))
        got += [adapter.name for adapter in page]
    assert sorted(got) == names
    assert len(got) == len(names)


async def test_parallel_promotions_lose_nothing(db: Database) -> None:
    versions = [_version("a", number) for number in range(1, 9)]
    await _add(db, *versions)

    def promotion(version: Version) -> Callable[[sa.Connection], bool]:
        return lambda conn: store.point(conn, "a", version.version, 1.0, "promoted", by="operator")

    await asyncio.gather(*(db.write(promotion(version)) for version in versions))

    def moves(conn: sa.Connection) -> list[str]:
        promoted = sa.select(events.c.version).where(events.c.what == "promoted")
        rows = conn.execute(promoted.order_by(events.c.id))
        return [row.version for row in rows]

    adapter = await db.read(lambda conn: store.find(conn, "a"))
    order = await db.read(moves)
    assert sorted(order) == sorted(version.version for version in versions)
    assert [adapter.previous, adapter.live] == order[-2:]


async def test_many_adapters_are_read_in_a_few_queries(db: Database) -> None:
    queries: list[str] = []

    def write(conn: sa.Connection) -> None:
        rows = [_version(f"a{number}", number) for number in range(1, 2001)]
        conn.execute(
            sa.insert(store.adapters),
            [{"name": r.name, "live": r.version, "created_at": 1.0, "updated_at": 1.0} for r in rows],
        )
        columns = [column.name for column in store.versions.columns]
        values = [{c: getattr(r, c, None) for c in columns} | {"wish": Wish.AUTO.value, "damaged": False} for r in rows]
        conn.execute(sa.insert(store.versions), values)

    await db.write(write)

    def read(conn: sa.Connection) -> int:
        sa.event.listen(conn, "before_cursor_execute", lambda *args: queries.append(args[2]))
        return len(_served(conn)) + len(store.page(conn, None, 1000)[0])

    assert await db.read(read) == 3000
    assert len(queries) <= 5
