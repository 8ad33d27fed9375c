"""What an operator does, against a real registry, a real store and two engines."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters import revision, store
from adapters.db import Database
from adapters.errors import AdapterRejected, Conflict, EngineError, InvalidName, NotFound, RegistryBusy
from adapters.service import AdapterService
from adapters.store_history import events
from adapters.traffic import NoTraffic
from adapters.types import Adapter, PlacementState, VersionState
from tests import databases
from tests.adapters.conftest import Clock, Rig, rigged
from tests.adapters.folders import usual, write
from tests.fake_vllm import FakeVLLM, Fault

LOAD = "/v1/load_lora_adapter"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write(tmp_path / "second", tensors=usual(seed=1))


def _states(adapter: Adapter) -> list[VersionState]:
    return [version.state for version in adapter.versions]


async def test_register_without_promote_loads_but_does_not_answer(rig: Rig, first: Path) -> None:
    made = await rig.service.register(first, "ft:demo:acme::x", notes="first try")
    version = made.versions[0]
    assert (made.live, made.previous, version.state) == (None, None, VersionState.READY)
    assert version.engine_name == f"ft-demo-acme--x@{version.version}"
    assert (version.rank, version.base, version.source, version.notes) == (8, "demo-base", str(first), "first try")
    assert [place.state for place in version.replicas] == [PlacementState.RESIDENT] * 2
    assert all(engine.loads == [version.engine_name] for engine in rig.engines)
    assert rig.shelf.holds(version.engine_name)
    assert rig.changes == [1]


async def test_registering_the_same_content_again_is_the_same_version(rig: Rig, first: Path, tmp_path: Path) -> None:
    made = await rig.service.register(first, "a", promote=True)
    before = await revision.current(rig.db)
    copy = Path(await asyncio.to_thread(shutil.copytree, first, tmp_path / "copy"))
    again = await rig.service.register(copy, "a", promote=True)
    assert again == made
    assert len(again.versions) == 1
    assert all(len(engine.loads) == 1 for engine in rig.engines)
    assert await revision.current(rig.db) > before  # it may have been marked damaged: looked at anew


async def test_promote_and_rollback_move_the_name(rig: Rig, first: Path, second: Path) -> None:
    one = (await rig.service.register(first, "a", promote=True)).live
    made = await rig.service.register(second, "a", promote=True)
    two = made.live
    assert (two != one, made.previous, _states(made)) == (True, one, [VersionState.LIVE, VersionState.PREVIOUS])
    back = await rig.service.rollback("a")
    assert (back.live, back.previous) == (one, two)
    forth = await rig.service.rollback("a", why="it was better")
    assert (forth.live, forth.previous) == (two, one)
    assert two is not None
    same = await rig.service.promote("a", two)
    assert (same.live, same.previous) == (two, one)

    def what(conn: sa.Connection) -> list[tuple[str, str]]:
        rows = conn.execute(sa.select(events.c.what, events.c.why).order_by(events.c.id))
        return [(row.what, row.why) for row in rows]

    assert await rig.db.read(what) == [
        ("registered", str(first)),
        ("promoted", ""),
        ("registered", str(second)),
        ("promoted", ""),
        ("rolled back", ""),
        ("rolled back", "it was better"),
    ]


async def test_a_name_moves_only_when_every_ready_engine_has_the_weights(rig: Rig, first: Path, second: Path) -> None:
    one = (await rig.service.register(first, "a", promote=True)).live
    rig.engines[1].script(Fault.STATUS, path=LOAD, status=500)
    with pytest.raises(EngineError, match="still answers as before"):
        await rig.service.register(second, "a", promote=True)
    shown = await rig.service.show("a")
    assert shown.live == one
    assert [place.state for place in shown.versions[0].replicas] == [PlacementState.RESIDENT, PlacementState.FAILED]
    promoted = await rig.service.promote("a", shown.versions[0].version)
    assert promoted.live == shown.versions[0].version


async def test_an_engine_that_is_away_does_not_stop_a_promotion_and_catches_up(rig: Rig, first: Path) -> None:
    away = rig.engines[1]
    await away.stop()
    await rig.reconciler.tick(away.url)
    made = await rig.service.register(first, "a", promote=True)
    assert made.live is not None
    assert [place.state for place in made.versions[0].replicas] == [PlacementState.RESIDENT, PlacementState.UNKNOWN]
    await away.start()
    await rig.reconciler.tick(away.url)
    assert list(away.loaded) == [made.versions[0].engine_name]


async def test_a_rejected_folder_leaves_nothing_and_touches_no_engine(rig: Rig, tmp_path: Path) -> None:
    spoilt = usual()
    spoilt[-1] = (*spoilt[-1][:3], b"\xff" * len(spoilt[-1][3]))  # NaN in the very last tensor
    with pytest.raises(AdapterRejected):
        await rig.service.register(write(tmp_path / "bad", tensors=spoilt), "a", promote=True)
    assert os.listdir(rig.shelf.root) == []
    assert await rig.service.list() == ((), False)
    assert all(engine.loads == [] for engine in rig.engines)
    assert rig.changes == []


@pytest.mark.parametrize("name", ["demo-base", "a@0123456789ab", "../a", ""])
async def test_names_that_cannot_be(rig: Rig, first: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        await rig.service.register(first, name)
    assert not rig.shelf.root.exists()


async def test_an_alias_of_the_base_cannot_be_taken(db: Database, tmp_path: Path, clock: Clock, first: Path) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(aliases=["also-base"])) as rig:
        with pytest.raises(InvalidName, match="base model's name"):
            await rig.service.register(first, "also-base")


async def test_two_names_with_one_engine_name_keep_the_weights_until_both_are_gone(rig: Rig, first: Path) -> None:
    made = await rig.service.register(first, "a:b", promote=True)
    other = await rig.service.register(first, "a-b", promote=True)
    engine_name = made.versions[0].engine_name
    assert other.versions[0].engine_name == engine_name
    await rig.service.remove("a:b")
    assert rig.shelf.holds(engine_name)
    assert all(engine_name in engine.loaded for engine in rig.engines)
    await rig.service.remove("a-b")
    assert os.listdir(rig.shelf.root) == []
    assert all(engine.loaded == {} for engine in rig.engines)


async def test_remove_one_version_or_all(rig: Rig, first: Path, second: Path) -> None:
    one = (await rig.service.register(first, "a", promote=True)).versions[0]
    two = (await rig.service.register(second, "a")).versions[0]
    with pytest.raises(Conflict, match="is live"):
        await rig.service.remove("a", one.version)
    assert [gone.version for gone in await rig.service.remove("a", two.version)] == [two.version]
    assert os.listdir(rig.shelf.root) == [one.engine_name]
    assert all(list(engine.loaded) == [one.engine_name] for engine in rig.engines)
    await rig.service.remove("a")
    assert os.listdir(rig.shelf.root) == []
    with pytest.raises(NotFound):
        await rig.service.show("a")
    with pytest.raises(NotFound):
        await rig.service.remove("a")
    again = await rig.service.register(first, "a", promote=True)
    assert again.live == one.version
    assert all(list(engine.loaded) == [one.engine_name] for engine in rig.engines)
    await rig.reconciler.tick(rig.engines[0].url)
    assert list(rig.engines[0].loaded) == [one.engine_name]  # the old removal is not held against it


async def test_what_is_registered_again_while_it_is_removed_keeps_its_files(rig: Rig, first: Path) -> None:
    made = (await rig.service.register(first, "a")).versions[0]
    for engine in rig.engines:  # the engines take their time over the unload
        engine.script(Fault.STALL_BEFORE_HEAD, path="/v1/unload_lora_adapter")
    removing = asyncio.create_task(rig.service.remove("a"))
    for engine in rig.engines:  # any other request, such as a probe, may come before the name is gone
        while not any(seen.path == "/v1/unload_lora_adapter" for seen in engine.requests):
            await asyncio.sleep(0.005)
    registering = asyncio.create_task(rig.service.register(first, "a"))
    while not await rig.db.read(store.known):
        await asyncio.sleep(0.005)
    for engine in rig.engines:
        await engine.restart()
    assert [version.version for version in await removing] == [made.version]
    await asyncio.wait([registering])  # its load may have met the restart
    registering.exception()
    assert rig.shelf.missing(await rig.db.read(store.known)) == frozenset()
    assert await rig.db.read(store.known) == {made.engine_name}


async def test_files_stay_while_a_request_may_still_want_them(rig: Rig, first: Path, second: Path) -> None:
    answering = ["a request"]

    class Answering(NoTraffic):
        def in_use(self, engine_name: str) -> bool:
            return bool(answering)

    changed = rig.service._changed
    service = AdapterService(rig.db, rig.shelf, rig.reconciler, clock=rig.clock, changed=changed, traffic=Answering())
    one = (await service.register(first, "a")).versions[0]
    two = (await service.register(second, "b")).versions[0]
    await service.remove("a")
    await service.remove("b")
    await service.register(second, "b")  # and so it is wanted again
    assert rig.shelf.missing([one.engine_name, two.engine_name]) == frozenset()
    rig.engines[0].loaded[one.engine_name] = "by the request that was waiting"
    answering.clear()
    await asyncio.gather(*service._swap._tasks)
    assert rig.shelf.missing([one.engine_name, two.engine_name]) == {one.engine_name}
    assert [set(engine.loaded) for engine in rig.engines] == [{two.engine_name}] * 2
    answering.append("another")
    await service.remove("b")
    await service.close()
    assert rig.shelf.holds(two.engine_name)
    assert await service.recover() == (two.engine_name,)  # the next start, though nothing else is registered


async def test_a_row_that_cannot_be_written_leaves_no_files(tmp_path: Path, clock: Clock, first: Path) -> None:
    file = tmp_path / "busy" / "loragate.db"
    db = Database.open(databases.sqlite(file), busy_timeout_s=0.02)
    other = sqlite3.connect(file, isolation_level=None)
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryBusy):
            await rig.service.register(first, "a")
        assert os.listdir(rig.shelf.root) == []
        other.execute("ROLLBACK")
        await rig.service.register(first, "a")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryBusy):  # the same content again: its files have a row
            await rig.service.register(first, "a")
        assert rig.shelf.missing(await rig.db.read(store.known)) == frozenset()
    other.close()
    db.close()


async def test_load_and_unload(rig: Rig, first: Path, second: Path) -> None:
    one = (await rig.service.register(first, "a", promote=True)).versions[0]
    two = (await rig.service.register(second, "a")).versions[0]
    with pytest.raises(Conflict, match="is live"):
        await rig.service.unload("a", one.version)
    shown = await rig.service.unload("a", two.version)
    assert [place.state for place in shown.versions[0].replicas] == [PlacementState.ABSENT] * 2
    await rig.service.load("a", two.version)
    engine = rig.engines[0]
    await engine.restart()
    await rig.reconciler.tick(engine.url)
    assert set(engine.loaded) == {one.engine_name, two.engine_name}
    await rig.service.unload("a", two.version)
    await engine.restart()
    await rig.reconciler.tick(engine.url)
    assert set(engine.loaded) == {one.engine_name}
    assert (await rig.service.load("a")).live == one.version


async def test_asking_for_what_is_not_there(rig: Rig, first: Path) -> None:
    with pytest.raises(NotFound, match="no adapter a"):
        await rig.service.promote("a", "0" * 12)
    await rig.service.register(first, "a")
    with pytest.raises(NotFound, match="has no version"):
        await rig.service.promote("a", "0" * 12)
    with pytest.raises(InvalidName):
        await rig.service.promote("a", "../../x")
    with pytest.raises(Conflict, match="no previous"):
        await rig.service.rollback("a")
    with pytest.raises(Conflict, match="no live version"):
        await rig.service.load("a")


async def test_lists_go_on_behind_a_name(rig: Rig, first: Path) -> None:
    for name in ("c", "a", "b"):
        await rig.service.register(first, name)
    page, more = await rig.service.list(limit=2)
    assert ([adapter.name for adapter in page], more) == (["a", "b"], True)
    page, more = await rig.service.list(after="b", limit=2)
    assert ([adapter.name for adapter in page], more) == (["c"], False)


async def test_without_an_engine_adapters_can_be_registered_and_are_loaded_later(
    db: Database, tmp_path: Path, clock: Clock, first: Path
) -> None:
    engine = FakeVLLM()
    async with rigged(db, tmp_path / "adapters", clock, engine) as rig:
        await engine.stop()
        await rig.reconciler.tick(engine.url)
        made = await rig.service.register(first, "a", promote=True)
        assert made.live is not None
        await engine.start()
        await rig.reconciler.tick(engine.url)
        assert list(engine.loaded) == [made.versions[0].engine_name]


async def test_a_restarted_gateway_serves_what_was_promoted_before(
    db: Database, tmp_path: Path, clock: Clock, first: Path
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        made = await rig.service.register(first, "a", promote=True)
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(), loops=True) as rig:
        assert await rig.service.recover() == ()
        url = rig.engines[0].url
        await rig.until(lambda: made.versions[0].engine_name in rig.reconciler.residency[url].resident)
        shown = await rig.service.show("a")
        assert (shown.live, shown.versions[0].state) == (made.live, VersionState.LIVE)


async def test_versions_whose_files_are_gone_are_shown_not_served_and_mended_by_registering(
    rig: Rig, first: Path
) -> None:
    made = await rig.service.register(first, "a", promote=True)
    name = made.versions[0].engine_name
    await asyncio.to_thread(shutil.rmtree, rig.shelf.root / name)
    await rig.service.recover()
    assert _states(await rig.service.show("a")) == [VersionState.DAMAGED]
    assert await rig.db.read(lambda conn: tuple(store.served(conn))) == ()
    with pytest.raises(Conflict, match="Register the same folder again"):
        await rig.service.promote("a", made.versions[0].version)
    mended = await rig.service.register(first, "a")
    assert _states(mended) == [VersionState.LIVE]
    assert rig.shelf.holds(name)


async def test_a_lost_database_does_not_cost_the_store(db: Database, tmp_path: Path, clock: Clock, first: Path) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        made = await rig.service.register(first, "a", promote=True)
    fresh = Database.open(f"sqlite:///{tmp_path / 'fresh.db'}")
    fresh.migrate()
    async with rigged(fresh, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        assert await rig.service.recover() == ()
        assert rig.shelf.holds(made.versions[0].engine_name)
    fresh.close()


async def test_what_routing_reads(rig: Rig, first: Path, second: Path) -> None:
    one = (await rig.service.register(first, "a", promote=True)).versions[0]
    two = (await rig.service.register(second, "a")).versions[0]
    rows = await rig.db.read(lambda conn: tuple(store.served(conn)))
    assert {(row.name, row.version, row.engine_name, row.base, row.live) for row in rows} == {
        ("a", one.version, one.engine_name, "demo-base", True),
        ("a", two.version, two.engine_name, "demo-base", False),
    }
