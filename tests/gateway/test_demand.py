"""Where adapters go by what is asked for, and what operators are told about slots: a gateway over small engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.demand import Demand
from gateway.loading import Loader
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

NAMES = [f"a{number}" for number in range(6)]


@asynccontextmanager
async def _fleet(tmp_path: Path, *slots: int) -> AsyncIterator[tuple[Running, list[FakeVLLM]]]:
    """A gateway with six live adapters over an engine for each of `slots`."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeVLLM(max_loras=each)) for each in slots]
        gateway = await stack.enter_async_context(running(tmp_path / "data", engines))
        for seed, name in enumerate(NAMES):
            folder = tiny_lora(tmp_path / name, seed=seed)
            await gateway.started.gateway.adapters.register(folder, name, promote=True)
        yield gateway, engines


async def _ask(gateway: Running, name: str, times: int = 1) -> None:
    async with await gateway.http() as http:
        for _ in range(times):
            asked = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            answer = await http.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-loragate-model"].startswith(f"{name}@")


def _followed(gateway: Running) -> tuple[Demand, Loader]:
    started = gateway.started.gateway
    return started.demand, started.demand._loader


async def test_six_adapters_on_two_times_two_slots_all_answer_and_are_counted(tmp_path: Path) -> None:
    async with _fleet(tmp_path, 2, 2) as (gateway, _):
        for _ in range(10):
            for name in NAMES:
                await _ask(gateway, name)
        replicas = gateway.started.gateway.proxy.fleet.replicas
        assert [len(replica.resident) <= 2 for replica in replicas] == [True, True]
        demand, _ = _followed(gateway)
        await demand.turn()
        async with gateway.admin() as http:
            capacity = (await http.get("/admin/v1/status")).json()["capacity"]
        assert (capacity["slots"], capacity["slots_per_engine"], capacity["working_set"]) == (4, 2, 6)
        assert capacity["requests"] == 60
        assert capacity["evictions"] >= 2
        assert capacity["hit_ratio"] < 0.98
        assert (capacity["advised_max_loras"], capacity["expected_hit_ratio"]) == (3, 1.0)
        assert "6 adapters are in use and 4 fit" in capacity["advice"]
        assert await gateway.metric("loragate_adapter_working_set") == 6
        assert await gateway.metric("loragate_adapter_slots") == 4
        assert await gateway.metric("loragate_adapter_misses_total") > 0


async def test_the_advice_knows_of_pinned_places_and_of_engines_that_are_away(tmp_path: Path) -> None:
    async with _fleet(tmp_path, 2, 2) as (gateway, engines):
        await gateway.started.gateway.adapters.load(NAMES[0])
        for _ in range(20):
            for name in NAMES[:4]:
                await _ask(gateway, name)
        demand, _ = _followed(gateway)
        await demand.turn()
        async with gateway.admin() as http:
            capacity = (await http.get("/admin/v1/status")).json()["capacity"]
            assert (capacity["slots"], capacity["working_set"], capacity["advised_max_loras"]) == (2, 3, 3)
            assert "3 adapters are in use and 2 fit beside the 1 on each engine" in capacity["advice"]
            await engines[1].stop()
            async with asyncio.timeout(30):
                while "1 of 2 engines is not ready: bring it back first." not in capacity["advice"]:
                    await asyncio.sleep(0.05)
                    capacity = (await http.get("/admin/v1/status")).json()["capacity"]


async def test_what_is_asked_for_most_is_brought_to_its_further_homes_before_it_is_asked_for_there(
    tmp_path: Path,
) -> None:
    async with _fleet(tmp_path, 2, 2) as (gateway, engines):
        demand, loader = _followed(gateway)
        await _ask(gateway, NAMES[0], 40)
        name = next(n for engine in engines for n in engine.loaded if n.startswith(f"{NAMES[0]}@"))
        async with asyncio.timeout(20):
            while not all(name in replica.resident for replica in gateway.started.gateway.proxy.fleet.replicas):
                await demand.turn()
                await asyncio.sleep(0.01)
        assert set(loader.plan.homes[name]) == {engine.url for engine in engines}


async def test_an_adapter_stays_where_it_is_while_demand_only_wavers(tmp_path: Path) -> None:
    async with _fleet(tmp_path, 3, 3) as (gateway, engines):
        demand, _ = _followed(gateway)
        assert demand._task is not None
        demand._task.cancel()  # turns are the test's: one in the middle of a round would see half of it
        for turn in range(10):
            for number, name in enumerate(NAMES):
                await _ask(gateway, name, 2 + (turn + number) % 2)
            await demand.turn()
            if turn == 5:  # by then what was elsewhere has been brought, one at a time
                loads = sum(len(engine.loads) for engine in engines)
        assert sum(len(engine.loads) for engine in engines) == loads


@pytest.mark.parametrize("slots", [(2,), (8, 8)])
async def test_what_fits_is_everywhere_and_nothing_is_advised(tmp_path: Path, slots: tuple[int, ...]) -> None:
    async with _fleet(tmp_path, *slots) as (gateway, engines):
        demand, _ = _followed(gateway)
        await _ask(gateway, NAMES[5], 60)
        await demand.turn()
        async with gateway.admin() as http:
            capacity = (await http.get("/admin/v1/status")).json()["capacity"]
        assert capacity["advised_max_loras"] is None
        if len(slots) == 2:
            assert [len(engine.loaded) for engine in engines] == [6, 6]
