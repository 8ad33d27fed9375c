"""Reconcile: the plan is pure; the loop brings real engines to what the registry says, and never further."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters import store
from adapters.db import Database
from adapters.engine import EngineClient
from adapters.errors import Conflict, EngineError, Unavailable
from adapters.http import open_http
from adapters.reconcile import Plan, Reconciler, Wanted, plan
from adapters.replica import LISTED_MAX
from adapters.types import PlacementState, ReplicaState, Version, VersionState, WantedVersion
from tests.adapters.conftest import Clock, Rig, rigged
from tests.adapters.folders import usual, write
from tests.fake_vllm import FakeVLLM, Fault

A, B, C = (f"{letter}@{letter * 12}" for letter in "abc")
LOAD = "/v1/load_lora_adapter"


def _wanted(*load: str, known: tuple[str, ...] = (), unload: tuple[str, ...] = (), base: str | None = None) -> Wanted:
    return Wanted(tuple(WantedVersion(name, base, pinned=False) for name in load), frozenset(known), frozenset(unload))


@pytest.mark.parametrize(
    ("wanted", "resident", "waiting", "expected"),
    [
        (_wanted(), (), (), Plan((), (), frozenset())),
        (_wanted(B, A), (), (), Plan((B, A), (), frozenset())),
        (_wanted(A, B, known=(A,)), (A,), (), Plan((B,), (), frozenset())),
        (_wanted(A, B), (), (A,), Plan((B,), (), frozenset())),
        (_wanted(known=(A,)), (A,), (), Plan((), (), frozenset())),
        (_wanted(unload=(A,)), (A, B), (), Plan((), (A,), frozenset({B}))),
        (_wanted(unload=(A,)), (), (), Plan((), (), frozenset())),
        (_wanted(A, base="base"), (), (), Plan((A,), (), frozenset())),
        (_wanted(A, base="other"), (), (), Plan((), (), frozenset())),
    ],
)
def test_the_plan(wanted: Wanted, resident: tuple[str, ...], waiting: tuple[str, ...], expected: Plan) -> None:
    assert plan(wanted, resident, resident, waiting, "base") == expected


async def _live(rig: Rig, tmp_path: Path, name: str = "a", seed: int = 0) -> str:
    """A promoted adapter; its engine name."""
    made = await rig.service.register(write(tmp_path / name, tensors=usual(seed=seed)), name, promote=True)
    return next(version.engine_name for version in made.versions if version.version == made.live)


async def test_the_loop_brings_a_restarted_engine_every_live_and_previous_version(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(), FakeVLLM(), loops=True) as rig:
        first, second = await _live(rig, tmp_path, "a", 0), await _live(rig, tmp_path, "a", 1)
        other = await _live(rig, tmp_path, "b", 2)
        engine = rig.engines[0]
        await engine.stop()
        rig.reconciler.wake()
        await rig.until(lambda: not rig.reconciler.residency[engine.url].reachable)
        await engine.start()
        assert engine.loaded == {}
        rig.reconciler.wake()
        await rig.until(lambda: rig.reconciler.residency[engine.url].resident == {first, second, other})
        assert set(engine.loaded) == {first, second, other}
        assert sorted(rig.engines[1].loads) == sorted({first, second, other})  # nothing was asked twice


async def test_an_engine_that_is_away_is_unreachable_with_a_reason_and_comes_back(rig: Rig, tmp_path: Path) -> None:
    name = await _live(rig, tmp_path)
    engine = rig.engines[0]
    await engine.stop()
    await rig.reconciler.tick(engine.url)
    view = rig.reconciler.residency[engine.url]
    assert (view.state, view.resident, "cannot be reached" in view.reason) == (
        ReplicaState.UNREACHABLE,
        frozenset(),
        True,
    )
    assert view.placement(name).state is PlacementState.UNKNOWN
    await engine.start()
    await rig.reconciler.tick(engine.url)
    assert rig.reconciler.residency[engine.url].resident == {name}


async def test_foreign_adapters_are_reported_and_left_alone(rig: Rig, tmp_path: Path) -> None:
    name = await _live(rig, tmp_path)
    engine = rig.engines[0]
    engine.loaded["theirs"] = engine.loaded[A] = "/somewhere"  # the second has the shape of ours
    await rig.reconciler.tick(engine.url)
    assert rig.reconciler.residency[engine.url].foreign == {"theirs", A}
    assert set(engine.loaded) == {name, "theirs", A}


async def test_what_was_removed_while_an_engine_was_away_is_unloaded_when_it_is_back(rig: Rig, tmp_path: Path) -> None:
    name = await _live(rig, tmp_path)
    engine = rig.engines[0]
    engine.script(Fault.RESET, path="/v1/models")
    await rig.reconciler.tick(engine.url)
    await rig.service.remove("a")
    assert name in engine.loaded
    await rig.reconciler.tick(engine.url)
    assert name not in engine.loaded


async def test_a_failing_load_waits_longer_each_time_and_does_not_stop_others(
    rig: Rig, tmp_path: Path, clock: Clock
) -> None:
    bad, good = await _live(rig, tmp_path, "bad", 0), await _live(rig, tmp_path, "good", 1)
    engine, url = rig.engines[0], rig.engines[0].url
    await engine.restart()
    (rig.shelf.root / bad / "adapter_config.json").unlink()
    loads = engine.loads
    loads.clear()
    waits = []
    await rig.reconciler.tick(url)
    for _ in range(7):
        before, waited = len(loads), 0
        while len(loads) == before:
            clock.now += 1
            waited += 1
            await rig.reconciler.tick(url)
        waits.append(waited)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    view = rig.reconciler.residency[url]
    assert (set(view.resident), set(view.failed)) == ({good}, {bad})
    assert "does not see the files" in view.placement(bad).reason
    assert view.placement(bad).state is PlacementState.FAILED


async def test_a_hundred_callers_share_one_load(rig: Rig, tmp_path: Path) -> None:
    name = await _live(rig, tmp_path)
    engine = rig.engines[0]
    await engine.restart()
    await rig.reconciler._replicas[engine.url].probe()
    engine.loads.clear()
    engine.script(Fault.SLOW, path=LOAD)
    waiting = [asyncio.create_task(rig.reconciler.ensure(name, engine.url)) for _ in range(100)]
    await engine.seen(1)
    waiting[0].cancel()  # one who leaves does not stop it for the others
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] + [type(None)] * 99
    assert engine.loads == [name]
    await rig.reconciler.ensure(name, engine.url)
    assert engine.loads == [name]


async def test_ensure_says_why_not(rig: Rig, clock: Clock) -> None:
    engine = rig.engines[0]
    await rig.reconciler.probed()
    with pytest.raises(EngineError, match="does not see the files"):
        await rig.reconciler.ensure(A, engine.url)
    with pytest.raises(Unavailable, match="a moment ago") as caught:
        await rig.reconciler.ensure(A, engine.url)
    assert caught.value.retry_after_s == 1
    assert engine.loads == [A]
    clock.now += 1
    with pytest.raises(EngineError):
        await rig.reconciler.ensure(A, engine.url)
    assert engine.loads == [A, A]
    await engine.stop()
    await rig.reconciler.tick(engine.url)
    with pytest.raises(Unavailable, match="unreachable"):
        await rig.reconciler.ensure(A, engine.url)


async def test_a_replica_with_another_base_is_refused(db: Database, tmp_path: Path, clock: Clock) -> None:
    engines = (FakeVLLM(), FakeVLLM("other-base"), FakeVLLM(max_model_len=8))
    async with rigged(db, tmp_path / "adapters", clock, *engines) as rig:
        views = [rig.reconciler.residency[engine.url] for engine in engines]
        assert [view.state for view in views] == [ReplicaState.READY, ReplicaState.REFUSED, ReplicaState.REFUSED]
        assert ["same base" in view.reason for view in views] == [False, True, True]
        name = await _live(rig, tmp_path)
        assert [engine.loads for engine in engines] == [[name], [], []]


async def test_a_pool_may_change_its_base_when_nobody_serves_the_old_one(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM()) as rig:
        name = await _live(rig, tmp_path)
        engine = rig.engines[0]
        await engine.stop()
        engine.adapters.bases[0] = "new-base"
        await engine.start()
        engine.loads.clear()
        await rig.reconciler.tick(engine.url)
        view = rig.reconciler.residency[engine.url]
        assert (view.state, view.base, view.resident) == (ReplicaState.READY, "new-base", frozenset())
        assert engine.loads == []  # it was made for the old base
        shown = await rig.service.show("a")
        assert "made for demo-base" in shown.versions[0].replicas[0].reason
        assert name not in engine.loaded


async def test_preload_is_capped_and_the_live_ones_come_first(db: Database, tmp_path: Path, clock: Clock) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(), preload_max=2) as rig:
        for at, name in enumerate("abc"):
            await _live(rig, tmp_path, name, at)
        engine = rig.engines[0]
        await engine.restart()
        await rig.reconciler.tick(engine.url)
        assert [name.partition("@")[0] for name in engine.loaded] == ["c", "b"]
        engine.loads.clear()
        await rig.reconciler.tick(engine.url)
        assert engine.loads == []


async def test_a_change_in_the_registry_is_brought_to_the_engines_without_waiting(rig: Rig, tmp_path: Path) -> None:
    seen = rig.reconciler.residency
    name = await _live(rig, tmp_path)
    assert rig.reconciler.residency is not seen
    assert all(view.resident == {name} for view in rig.reconciler.residency.values())
    with pytest.raises(TypeError):
        rig.reconciler.residency["x"] = seen  # type: ignore[index]


async def test_the_loop_outlives_what_nobody_thought_of(db: Database, tmp_path: Path, clock: Clock) -> None:
    odd = json.dumps({"data": [{"id": "demo-base"}, {"id": "\ud800", "parent": "demo-base"}]})  # no text for a database
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(), loops=True) as rig:
        (engine,) = rig.engines
        await rig.reconciler.probed()
        engine.script(Fault.STATUS, path="/v1/models", status=200, body=odd.encode())
        async with asyncio.timeout(30):
            rig.reconciler.wake()
            await rig.until(lambda: "\ud800" in rig.reconciler.residency[engine.url].listed)
            rig.reconciler.wake()
            await rig.until(lambda: not rig.reconciler.residency[engine.url].listed)


async def test_weights_of_our_name_from_another_folder_are_replaced_by_ours(rig: Rig, tmp_path: Path) -> None:
    name = await _live(rig, tmp_path)
    engine, ours = rig.engines[0], str(rig.shelf.path(name))
    engine.loaded[name] = "/a/data/directory/of/before"
    await rig.reconciler.tick(engine.url)
    assert engine.loaded == {name: ours}
    assert name in rig.reconciler.residency[engine.url].resident
    engine.loaded[name] = "/of/another/gateway"  # which would take it back each time
    await rig.reconciler.tick(engine.url)
    assert engine.loaded == {name: "/of/another/gateway"}
    assert name in rig.reconciler.residency[engine.url].resident
    await engine.restart()
    await rig.reconciler.tick(engine.url)
    assert engine.loaded == {name: ours}


async def test_who_waits_for_a_load_is_told_when_the_gateway_stops(rig: Rig, tmp_path: Path) -> None:
    engine = rig.engines[0]
    engine.script(Fault.STALL_BEFORE_HEAD, path=LOAD)
    waiting = asyncio.create_task(rig.service.register(write(tmp_path / "a"), "a", promote=True))
    while not rig.reconciler.residency[engine.url].loading:
        await asyncio.sleep(0.005)
    await rig.reconciler.close()
    with pytest.raises(EngineError, match="stopped while"):
        await waiting


def _insert(conn: sa.Connection, engine_name: str) -> None:
    """A row without files, made for another base: known, and never loaded from here."""
    name, _, version = engine_name.partition("@")
    row = Version(name, version, version * 5, engine_name, "another", 8, 1, "", "", 1.0, VersionState.READY)
    store.add(conn, row)


async def _registered(rig: Rig, tmp_path: Path, *names: str, promote: bool = False) -> list[str]:
    """Engine names of new adapters."""
    made = []
    for number, name in enumerate(names):
        folder = write(tmp_path / name, tensors=usual(seed=1 + number))
        made.append((await rig.service.register(folder, name, promote=promote)).versions[0].engine_name)
    return made


async def test_registering_takes_room_from_nobody_and_promoting_from_the_idle(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(max_loras=2)) as rig:
        engine = rig.engines[0]
        first, second = await _registered(rig, tmp_path, "a", "b", promote=True)
        [third] = await _registered(rig, tmp_path, "c")
        assert set(engine.loaded) == {first, second}
        await rig.service.promote("c", third.rpartition("@")[2])
        view = rig.reconciler.residency[engine.url]
        assert (len(view.resident), view.evictions) == (2, 1)
        assert third in view.resident
        [out] = {first, second} - view.resident
        assert view.placement(out).state is PlacementState.STANDBY
        loads = len(engine.loads)
        await rig.reconciler.ensure(out, engine.url)  # it is listed there: nothing has to be said to the engine
        assert out in rig.reconciler.residency[engine.url].resident
        assert len(engine.loads) == loads


async def test_of_what_others_loaded_only_what_fits_counts_as_in_the_slots(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(max_loras=2)) as rig:
        engine = rig.engines[0]
        names = await _registered(rig, tmp_path, "a", "b", "c", "d", promote=True)
        await engine.restart()
        await rig.reconciler.tick(engine.url)
        for name in names:
            engine.loaded[name] = str(rig.shelf.root / name)
        await rig.reconciler.tick(engine.url)
        view = rig.reconciler.residency[engine.url]
        assert (len(view.resident), view.listed) == (2, frozenset(names))


async def test_a_gateway_that_starts_anew_counts_no_more_than_the_slots(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    engine, root = FakeVLLM(max_loras=2), tmp_path / "adapters"
    async with rigged(db, root, clock, engine) as rig:
        names = await _registered(rig, tmp_path, "a", "b", "c", "d", promote=True)
        assert set(engine.loaded) == set(names)
        async with open_http() as http:
            second = Reconciler(db, [EngineClient(engine.url, None, root, http)], clock=clock)
            await second.tick(engine.url)
            assert len(second.residency[engine.url].resident) == 2
            for name in names:
                await second.ensure(name, engine.url)
                assert len(second.residency[engine.url].resident) == 2
            await second.close()


async def test_an_engine_forgets_what_has_been_unused_for_the_longest_time_when_it_lists_too_many(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(max_loras=2)) as rig:
        engine = rig.engines[0]
        [name] = await _registered(rig, tmp_path, "a", promote=True)
        path = rig.shelf.root
        more = [f"m@{number:012x}" for number in range(LISTED_MAX + 10)]
        for each in more:
            await rig.db.write(partial(_insert, engine_name=each))
        for each in more:
            engine.loaded[each] = str(path / each)
        await rig.reconciler.tick(engine.url)
        await rig.reconciler.tick(engine.url)
        assert len(engine.loaded) == LISTED_MAX
        assert name in engine.loaded


async def test_pinned_adapters_leave_one_slot_to_all_others(db: Database, tmp_path: Path, clock: Clock) -> None:
    async with rigged(db, tmp_path / "adapters", clock, FakeVLLM(max_loras=3)) as rig:
        names = await _registered(rig, tmp_path, "a", "b", "c", "d", promote=True)
        await rig.service.load("a")
        await rig.service.load("b")
        await rig.service.load("b")
        with pytest.raises(Conflict, match="2 adapters are pinned, and the smallest engine holds 3"):
            await rig.service.load("c")
        await rig.reconciler.tick(rig.engines[0].url)
        for name in ("c", "d", "c"):
            await rig.reconciler.ensure(names["abcd".index(name)], rig.engines[0].url)
        assert set(names[:2]) < set(rig.engines[0].loaded)


async def test_a_canary_is_neither_unloaded_nor_removed(rig: Rig, tmp_path: Path) -> None:
    await _live(rig, tmp_path, "a", 0)
    new = (await rig.service.register(write(tmp_path / "new", tensors=usual(seed=3)), "a")).versions[0].version
    await rig.service.canary("a", new, 10)
    for move in (rig.service.unload("a", new), rig.service.remove("a", new)):
        with pytest.raises(Conflict, match="End the canary"):
            await move
    assert await rig.service.end_canary("a")
    assert not await rig.service.end_canary("a")
    await rig.service.remove("a", new)


async def test_the_version_before_the_previous_leaves_the_engines(rig: Rig, tmp_path: Path) -> None:
    first = await _live(rig, tmp_path, "a", 0)
    second, third = await _live(rig, tmp_path, "a", 1), await _live(rig, tmp_path, "a", 2)
    await asyncio.gather(*rig.service._swap._tasks)
    assert [set(engine.loaded) for engine in rig.engines] == [{second, third}] * 2
    assert rig.shelf.holds(first)
    await rig.service.rollback("a")
    await rig.service.promote("a", first.rpartition("@")[2])
    await asyncio.gather(*rig.service._swap._tasks)
    assert [set(engine.loaded) for engine in rig.engines] == [{second, first}] * 2


async def test_what_is_loaded_while_the_registry_is_read_is_not_taken_for_somebody_elses(
    rig: Rig, tmp_path: Path
) -> None:
    name = await _live(rig, tmp_path)
    engine = rig.engines[0]
    await engine.restart()
    replica, hold = rig.reconciler._replicas[engine.url], threading.Event()
    await replica.probe()
    blocking = [asyncio.create_task(rig.db.read(lambda conn: hold.wait(30))) for _ in range(16)]
    await asyncio.sleep(0)
    engine.requests.clear()
    turn = asyncio.create_task(rig.reconciler.tick(engine.url))
    await engine.seen(1)
    await asyncio.sleep(0.05)  # the turn stands at the registry by then
    await replica.load(name)
    hold.set()
    await asyncio.gather(turn, *blocking)
    assert name in rig.reconciler.residency[engine.url].resident
    assert not rig.reconciler.residency[engine.url].foreign
