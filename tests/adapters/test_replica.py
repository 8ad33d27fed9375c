"""One engine as the gateway keeps it: what is counted as in its slots, whom it puts out, what a load may come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapters.engine import EngineClient
from adapters.errors import Conflict, EngineError, NotProven, Saturated
from adapters.http import open_http
from adapters.replica import LISTED_MAX, Prove, Replica, trusting
from adapters.traffic import NoTraffic
from tests.adapters.conftest import Clock
from tests.fake_adapters import write_adapter
from tests.fake_vllm import FakeVLLM, Fault

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
A, B, C, D = (f"{letter}@{letter * 12}" for letter in "abcd")


@dataclass
class Use(NoTraffic):
    """What is in flight, and in which order what is idle became so."""

    busy: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    waiters: int = 0
    starved: asyncio.Event = field(default_factory=asyncio.Event)

    def idle(self, url: str, names: Collection[str]) -> Sequence[str]:
        rest = [name for name in names if name not in self.busy]
        return sorted(rest, key=lambda name: (self.order.index(name) if name in self.order else -1, name))

    def waits(self, url: str) -> None:
        self.waiters += 1

    def starving(self, url: str) -> None:
        self.starved.set()

    def fed(self, url: str) -> None:
        self.waiters -= 1

    def in_use(self, engine_name: str) -> bool:
        return engine_name in self.busy

    def runs(self, url: str, engine_name: str) -> bool:
        return engine_name in self.busy


@dataclass
class Bench:
    engine: FakeVLLM
    replica: Replica
    use: Use
    guarded: set[str]
    clock: Clock


@asynccontextmanager
async def bench(
    tmp_path: Path, slots: int = 2, prove: Prove = trusting, timeout_s: float = 30, held: int | None = None
) -> AsyncIterator[Bench]:
    for seed, name in enumerate((A, B, C, D)):
        write_adapter(tmp_path / name, seed=seed)
    async with FakeVLLM(max_loras=slots) as engine, open_http() as http:
        client = EngineClient(engine.url, None, tmp_path, http, held=held, load_timeout_s=timeout_s)
        use, guarded, clock = Use(), set[str](), Clock()
        replica = Replica(client, clock, lambda: None, use, prove, guarded.__contains__)
        await replica.probe()
        yield Bench(engine, replica, use, guarded, clock)
        await replica.close()
        assert use.waiters == 0


async def test_whoever_is_idle_for_the_longest_time_makes_room(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for name in (A, B):
            await it.replica.load(name)
        it.use.order = [B, A]
        assert it.replica.room() == 1
        await it.replica.load(C)
        assert it.replica.resident == {A, C}
        assert it.replica.evictions == 1
        assert it.engine.loaded.keys() == {A, B, C}  # putting out is counted, not told
        it.engine.loads.clear()
        await it.replica.load(B)
        assert it.engine.loads == []  # it is listed still


@pytest.mark.parametrize("why", ["busy", "pinned", "guarded"])
async def test_who_is_not_put_out(tmp_path: Path, why: str) -> None:
    async with bench(tmp_path) as it:
        for name in (A, B):
            await it.replica.load(name)
        it.use.order = [A, B]
        it.use.busy |= {A} if why == "busy" else set()
        it.guarded |= {A} if why == "guarded" else set()
        it.replica.pinned = frozenset({A} if why == "pinned" else ())
        await it.replica.load(C)
        assert it.replica.resident == {A, C}


async def test_without_room_one_waits_until_something_is_idle(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for name in (A, B):
            await it.replica.load(name)
        it.use.busy = {A, B}
        assert it.replica.room() == 2
        with pytest.raises(Saturated, match="no room for another"):
            await it.replica.load(C)
        waiting = asyncio.create_task(it.replica.load(C, wait_s=3600))
        impatient = asyncio.create_task(it.replica.load(D))
        with pytest.raises(Saturated):
            await impatient
        await it.use.starved.wait()  # somebody is to run dry
        assert not waiting.done()
        it.use.busy = {A}
        it.replica.freed()
        await waiting
        assert it.replica.resident == {A, C}
        it.replica.pinned = it.replica.resident
        assert it.replica.room() == 3
        with pytest.raises(Saturated):  # at once: nothing of it will ever go
            await it.replica.load(D, wait_s=3600)


async def test_nothing_is_loaded_beside_as_many_busy_ones_as_there_are_slots(tmp_path: Path) -> None:
    """The engine keeps more of them, and computes with no more: a proof would wait there for minutes, and all loads."""
    async with bench(tmp_path, held=4) as it:
        for name in (A, B):
            await it.replica.load(name)
        it.use.busy = {A, B}
        assert it.replica.room() == 2
        with pytest.raises(Saturated):
            await it.replica.load(C)
        assert it.engine.loads == [A, B]
        it.use.busy = {A}
        assert it.replica.room() == 0
        await it.replica.load(C)
        assert it.replica.resident == {A, B, C}


async def test_the_impatient_do_not_decide_for_the_patient(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for name in (A, B):
            await it.replica.load(name)
        it.use.busy = {A, B}
        ends = [asyncio.create_task(it.replica.load(C, wait_s=wait)) for wait in (0.0, None, 3600)]
        for end in ends[:2]:
            with pytest.raises(Saturated):
                await end
        await it.use.starved.wait()
        it.use.busy.clear()
        it.replica.freed()
        await ends[2]
        assert it.engine.loads.count(C) == 1


async def test_a_load_that_takes_too_long_has_failed_and_may_be_there_all_the_same(tmp_path: Path) -> None:
    async with bench(tmp_path, timeout_s=0.1) as it:
        it.engine.script(Fault.STALL_BEFORE_HEAD, path=LOAD)
        with pytest.raises(EngineError, match=r"does not answer in 0\.1 s"):
            await it.replica.load(A)
        assert it.replica.failed == {A}
        assert not it.replica.resident
        assert it.replica.reachable
        await it.replica.load(B)  # nobody else waits for it
        await it.replica.probe()
        assert it.replica.resident == {A, B}  # the engine has it after all
        assert not it.replica.failed
        assert A in it.replica.unproven()


async def test_a_broken_connection_is_no_engine_that_is_gone(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.replica.load(A)
        it.engine.script(Fault.RESET, path=LOAD)
        await it.replica.load(B)  # sent again
        it.engine.script(Fault.RESET, path=LOAD, times=None, undone=True)
        with pytest.raises(EngineError, match="cannot be reached"):
            await it.replica.load(C)
        assert it.replica.reachable
        assert A in it.replica.listed
        assert it.replica.failed == {C}
        await it.engine.stop()
        with pytest.raises(EngineError, match="cannot be reached"):
            await it.replica.load(D)
        assert not it.replica.reachable
        assert not it.replica.listed


async def test_what_does_not_prove_itself_gets_no_request_until_it_does(tmp_path: Path) -> None:
    good = False

    async def prove(client: EngineClient, base: str, engine_name: str) -> bool:
        if not good:
            raise NotProven("It answers like the base model.")
        return True

    async with bench(tmp_path, prove=prove) as it:
        with pytest.raises(NotProven):
            await it.replica.load(A)
        assert not it.replica.resident
        assert not it.engine.loaded
        assert it.replica.waiting() == {A}
        assert it.replica.retry_after_s(A) > 200
        it.engine.loaded[A] = it.replica.client.path(A)  # listed again, by whomever
        await it.replica.probe()
        assert A not in it.replica.resident
        good = True
        await it.replica.load(A)  # an operator insists
        assert it.replica.resident == {A}
        assert not it.replica.failed


@pytest.mark.parametrize("why", ["busy", "guarded"])
async def test_what_is_used_when_the_turn_of_its_unload_comes_stays(tmp_path: Path, why: str) -> None:
    async with bench(tmp_path) as it:
        await it.replica.load(A)
        gate = it.engine.gates[B] = asyncio.Event()
        loading = asyncio.create_task(it.replica.load(B))
        async with asyncio.timeout(20):
            while B not in it.engine.loads:
                await asyncio.sleep(0.005)
        unloading = asyncio.create_task(it.replica.unload(A))
        await asyncio.sleep(0)  # it waits for the load
        it.use.busy |= {A} if why == "busy" else set()
        it.guarded |= {A} if why == "guarded" else set()
        gate.set()
        with pytest.raises(Conflict, match="in use"):
            await unloading
        await loading
        assert it.replica.resident == {A, B}
        it.use.busy.clear()
        it.guarded.clear()
        await it.replica.unload(A)
        assert it.engine.loaded.keys() == {B}


async def test_no_request_is_sent_to_what_is_being_unloaded(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.replica.load(A)
        gate = it.engine.gates[A] = asyncio.Event()
        unloading = asyncio.create_task(it.replica.unload(A))
        async with asyncio.timeout(20):
            while not any(seen.path == UNLOAD for seen in it.engine.requests):
                await asyncio.sleep(0.005)
        assert A not in it.replica.resident
        gate.set()
        await unloading


async def test_a_very_long_list_is_shortened_by_what_nobody_uses(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for name in (A, B, C):
            await it.replica.load(name)
        theirs = {f"n{at}@{at:012x}": str(tmp_path / f"n{at}@{at:012x}") for at in range(LISTED_MAX)}
        it.engine.loaded.update(theirs)
        await it.replica.probe()
        it.use.busy = {A}
        await it.replica.trim()
        assert len(it.engine.loaded) <= LISTED_MAX + 1  # one of those whose turn it was is in use
        assert {A, B, C} <= it.engine.loaded.keys()


async def test_what_somebody_unloaded_under_a_request_is_not_loaded_again_before_that_ends(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        await it.replica.load(A)
        it.use.busy.add(A)
        await it.replica.client.unload(A)
        it.replica.lost(A)
        for patience in (None, 0.0, 0.1):
            with pytest.raises(Saturated, match="unloaded there while requests run"):
                await it.replica.load(A, wait_s=patience)
        assert it.engine.loads == [A]
        assert not it.replica.failed
        it.use.busy.clear()
        await it.replica.load(A)
        assert it.engine.loads == [A, A]


async def test_an_engine_without_a_base_model_is_no_engine(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.engine.script(Fault.STATUS, path="/v1/models", status=200, body=b'{"data":[]}')
        await it.replica.probe()
        assert not it.replica.reachable
        assert "no base model" in it.replica.view().reason
        it.engine.script(Fault.STATUS, path=UNLOAD, undone=True)
        with pytest.raises(EngineError, match="its log says why"):
            await it.replica.unload(A)
