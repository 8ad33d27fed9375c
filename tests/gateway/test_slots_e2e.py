"""Many adapters on few slots, in a whole gateway: nothing fails, nobody starves, what is pinned or foreign stays."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.fake_slots import digest
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import CHAT, ask, at_rest, error_of
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@dataclass
class Room:
    """A gateway with registered adapters `n0`, `n1`, …, of which none is loaded unless it fits."""

    gateway: Running
    engines: Sequence[FakeVLLM]
    http: httpx.AsyncClient
    admin: httpx.AsyncClient
    versions: dict[str, str]  # name -> its live version
    sources: dict[str, Path]

    def engine_name(self, name: str) -> str:
        return f"{name}@{self.versions[name]}"

    @property
    def loader(self) -> Any:
        return self.gateway.started.gateway.adapters._swap._traffic

    async def ask(self, name: str, said: str = "x", **more: Any) -> httpx.Response:
        return await self.http.post(CHAT, json=ask(CHAT, said, model=name, **more))

    async def right(self, name: str, said: str = "x", by_version: bool = False) -> None:
        """It is answered, by its own weights."""
        answer = await self.ask(self.engine_name(name) if by_version else name, said)
        assert answer.status_code == 200, answer.text
        text = answer.json()["choices"][0]["message"]["content"]
        assert text == f"{self.engine_name(name)}#{digest(self.sources[name])}#demo-base: {said}"

    @asynccontextmanager
    async def held(self, *names: str) -> AsyncIterator[None]:
        """Meanwhile one stream of each stands still in its middle; then it goes on, and is whole."""
        gates = {name: asyncio.Event() for name in names}
        for engine in self.engines:
            engine.gates |= {f"hold-{name}-": gate for name, gate in gates.items()}
        async with AsyncExitStack() as stack:
            streams = []
            for name in names:
                body = ask(CHAT, f"hold-{name}- on", model=name, stream=True)
                streams.append(await stack.enter_async_context(self.http.stream("POST", CHAT, json=body)))
            assert [stream.status_code for stream in streams] == [200] * len(names)
            yield
            for gate in gates.values():
                gate.set()
            for stream in streams:
                assert (await stream.aread()).endswith(b"data: [DONE]\n\n")

    async def register(self, name: str, seed: int, promote: bool = False) -> None:
        folder = self.sources[name] = tiny_lora(self.gateway.data_dir.parent / f"lora-{seed}", seed)
        made = await self.admin.post(ADAPTERS, json={"source": str(folder), "name": name, "promote": promote})
        assert made.status_code == 201, made.text
        self.versions[name] = made.json()["versions"][0]["version"]

    def sound(self) -> None:
        """No more were in flight than an engine has slots, and none was loaded again while it was listed."""
        for engine in self.engines:
            assert engine.slots.most <= engine.slots.count
            assert not engine.deaths

    def resident(self, at: int = 0) -> set[str]:
        """What the gateway counts as in the slots of an engine."""
        reconciler = self.gateway.started.gateway.adapters._reconciler
        return {*reconciler.residency[self.engines[at].url].resident}


@asynccontextmanager
async def room(
    tmp_path: Path, slots: Sequence[int], count: int, *, promote: bool = True, **settings: Any
) -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeVLLM(max_loras=n, shows_weights=True)) for n in slots]
        gateway = await stack.enter_async_context(running(tmp_path / "data", engines, **settings))
        http = await stack.enter_async_context(await gateway.http())
        admin = await stack.enter_async_context(gateway.admin())
        made = Room(gateway, engines, http, admin, {}, {})
        for at in range(count):
            await made.register(f"n{at}", at + 1, promote)
        yield made
        await at_rest(gateway)
        for replica in gateway.started.gateway.proxy.fleet.replicas:
            assert not replica.busy
            assert not replica.draining


async def test_fifty_adapters_on_four_slots(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with room(tmp_path, [4], 50, promote=False, adapters={"proof": False}) as it:
        names = chance.choices(list(it.versions), weights=[1 / (rank + 1) for rank in range(50)], k=400)
        several = asyncio.Semaphore(12)

        async def one(at: int, name: str) -> None:
            async with several:
                await it.right(name, f"number {at}", by_version=True)

        await asyncio.gather(*(one(at, name) for at, name in enumerate(names)))
        it.sound()
        # Listed once, each stays so: the engine itself reads it again. Four had room when they were registered.
        assert len(it.engines[0].loads) == len({*names, "n0", "n1", "n2", "n3"})
        assert len(it.resident()) == 4
        evicted = await it.gateway.metric("loragate_adapter_evictions_total", replica=it.engines[0].url)
        assert evicted >= len(set(names)) - 4
        assert it.engines[0].slots.reads <= evicted  # it has in its slots what the gateway counts there


async def test_whoever_answered_longest_ago_goes_first(tmp_path: Path) -> None:
    async with room(tmp_path, [4], 6, adapters={"proof": False}) as it:
        for name in ("n0", "n1", "n2", "n3", "n0", "n4", "n2", "n5"):
            await it.right(name)
        assert it.resident() == {it.engine_name(name) for name in ("n0", "n4", "n2", "n5")}
        reads = it.engines[0].slots.reads
        for name in ("n4", "n2", "n5", "n0"):
            await it.right(name)
        assert it.engines[0].slots.reads == reads  # the engine has put out the same ones
        it.sound()


async def test_what_is_pinned_stays_and_one_place_is_left(tmp_path: Path) -> None:
    async with room(tmp_path, [3], 6, adapters={"proof": False}) as it:
        for name in ("n0", "n1"):
            pinned = await it.admin.post(f"{ADAPTERS}/{name}/load")
            assert pinned.status_code == 200, pinned.text
            for other in ("n3", "n4", "n5"):  # at once: not only when somebody has looked again
                await it.right(other)
            assert it.engine_name(name) in it.resident()
        refused = await it.admin.post(f"{ADAPTERS}/n2/load")
        assert refused.status_code == 409
        assert refused.json()["error"]["message"] == (
            "2 adapters are pinned, and the smallest engine holds 3: one place must stay for all others. "
            "Unload a pinned one, or start the engines with a larger --max-loras."
        )
        await asyncio.gather(*(it.right(f"n{2 + at % 4}") for at in range(24)))
        assert {it.engine_name("n0"), it.engine_name("n1")} < it.resident()
        for name in ("n0", "n1"):  # live: only kept no longer
            body = {"version": it.versions[name]}
            assert (await it.admin.post(f"{ADAPTERS}/{name}/unload", json=body)).status_code == 200
            assert (await it.admin.post(f"{ADAPTERS}/{name}/unload", json=body)).status_code == 409
        events = (await it.admin.get(f"{ADAPTERS}/n0/history")).json()["data"]
        assert [event["what"] for event in events[:2]] == ["kept no longer", "kept loaded"]
        assert (await it.admin.post(f"{ADAPTERS}/n2/load")).status_code == 200
        it.sound()


async def test_a_hundred_requests_for_one_cold_adapter_cost_one_load(tmp_path: Path) -> None:
    async with room(tmp_path, [2, 2], 4, adapters={"proof": False}) as it:
        await it.register("cold", 9)  # there is no room, so it waits until it is asked for
        cold = it.engine_name("cold")
        assert not any(cold in engine.loaded for engine in it.engines)
        answers = await asyncio.gather(*(it.ask(cold) for _ in range(100)))
        assert {(answer.status_code, answer.headers["x-loragate-model"]) for answer in answers} == {(200, cold)}
        loads = sorted(engine.loads.count(cold) for engine in it.engines)
        assert loads in ([0, 1], [1, 1])
        it.sound()


async def test_those_who_wait_are_few_and_not_for_ever(tmp_path: Path) -> None:
    settings = {"load_timeout_s": 0.3, "max_waiting": 5, "proof": False}
    async with room(tmp_path, [2], 4, adapters=settings) as it, it.held("n0", "n1"):
        answers = await asyncio.gather(*(it.ask("n2") for _ in range(12)))
        assert {answer.status_code for answer in answers} == {503}
        assert {error_of(CHAT, answer.json())["code"] for answer in answers} == {"model_loading"}
        waits = [int(answer.headers["retry-after"]) for answer in answers]
        assert min(waits) >= 1
        assert await it.gateway.metric("loragate_adapter_misses_total") >= 12
        await it.right("n0")  # those that are there are not in anybody's way
        it.sound()


async def test_nobody_starves_though_all_slots_are_busy_for_ever(tmp_path: Path) -> None:
    """Four adapters are never idle: each has its next request before the last one is over."""
    async with room(tmp_path, [4], 5, adapters={"proof": False}) as it:
        over = asyncio.Event()
        served: dict[str, int] = dict.fromkeys(it.versions, 0)

        async def busy(name: str) -> None:
            while not over.is_set():
                await it.right(name)
                served[name] += 1

        it.engines[0].script(Fault.SLOW, times=None, path=CHAT, delay=0.05)
        callers = [asyncio.create_task(busy(f"n{at}")) for at in range(4) for _ in range(3)]
        async with asyncio.timeout(20):
            await it.right("n4")
            before = dict(served)
            while not all(served[name] > before[name] + 2 for name in ("n0", "n1", "n2", "n3")):
                await asyncio.sleep(0.02)  # the one that had to run dry is back too
        over.set()
        await asyncio.gather(*callers)
        it.engines[0].heal()
        it.sound()


async def test_what_has_to_run_dry_makes_room_though_it_is_asked_for(tmp_path: Path) -> None:
    """All slots are busy and one is given up: whoever goes on asking for it waits behind the one that starved."""
    async with room(tmp_path, [2], 3, adapters={"proof": False, "load_timeout_s": 20}) as it:
        (replica,) = it.gateway.started.gateway.proxy.fleet.replicas
        async with it.held("n1"):
            async with it.held("n0"):
                starving = asyncio.create_task(it.right("n2"))
                async with asyncio.timeout(10):
                    while not replica.draining:
                        await asyncio.sleep(0.01)
                assert replica.draining == it.engine_name("n0")
                again = [asyncio.create_task(it.ask(name)) for name in ("n0", "n0", "n1")]
                async with asyncio.timeout(10):
                    while it.loader._wanting[replica.url] < 2:
                        await asyncio.sleep(0.01)
            async with asyncio.timeout(10):  # half of what a request waits for its adapter
                await starving
                assert {(await answer).status_code for answer in again} == {200}
        it.sound()


async def test_what_others_have_loaded_stays(tmp_path: Path) -> None:
    async with room(tmp_path, [3], 4, adapters={"proof": False}) as it:
        engine = it.engines[0]
        theirs = tiny_lora(tmp_path / "theirs", 99)
        engine.loaded.clear()
        async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as other:
            answer = await other.post(LOAD, json={"lora_name": "theirs", "lora_path": str(theirs)})
            assert answer.status_code == 200
        it.gateway.started.gateway.adapters._reconciler.wake()
        async with asyncio.timeout(20):
            while not it.gateway.started.gateway.adapters._reconciler.residency[engine.url].foreign:
                await asyncio.sleep(0.01)
        pinned = await it.admin.post(f"{ADAPTERS}/n0/load")
        assert pinned.status_code == 200, pinned.text
        for at in range(24):
            await it.right(f"n{at % 4}")
        assert "theirs" in engine.loaded
        assert it.engine_name("n0") in it.resident()
        it.sound()


async def test_a_load_that_hangs_stands_in_nobodys_way(tmp_path: Path) -> None:
    """Nor do those that wait behind it at its engine: all are loaded where there is room too."""
    async with room(tmp_path, [4, 4], 12, promote=False, adapters={"proof": False, "load_timeout_s": 12}) as it:
        cold = [name for name in it.versions if it.engine_name(name) not in it.resident(0) | it.resident(1)]
        assert len(cold) >= 4
        it.engines[0].script(Fault.STALL_BEFORE_HEAD, path=LOAD)
        await asyncio.gather(*(it.right(name, by_version=True) for name in cold))
        assert any(seen.path == LOAD for seen in it.engines[0].requests)
        await it.engines[0].restart()  # what hangs would be waited for two minutes
        it.sound()


async def test_an_engine_that_refuses_a_load_stands_in_nobodys_way(tmp_path: Path) -> None:
    async with room(tmp_path, [4, 4], 0) as it:
        it.engines[0].script(Fault.STATUS, times=None, path=LOAD, body=b"no: /srv/store/x", undone=True)
        await it.register("half", 1)
        name = it.engine_name("half")
        for _ in range(3):
            answers = await asyncio.gather(*(it.ask(name, stream=at % 2 > 0) for at in range(8)))
            assert [answer.status_code for answer in answers] == [200] * 8
            assert {answer.headers["x-loragate-model"] for answer in answers} == {name}
        assert (name in it.engines[0].loaded, name in it.engines[1].loaded) == (False, True)
        shown = (await it.admin.get(f"{ADAPTERS}/half")).json()
        states = {place["url"]: place["state"] for place in shown["versions"][0]["replicas"]}
        assert states == {it.engines[0].url: "failed", it.engines[1].url: "resident"}
        assert "/srv" not in json.dumps(shown)
        assert len(it.engines[0].loads) <= 4  # not tried again with every request
        it.engines[0].heal()
