"""Everything that can go wrong while a version is brought in, in a whole gateway and under traffic: callers get the old
version or the new one, the registry says what is, and nobody is shown a path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.lifecycle_world import OTHER_BASE, World, spoken
from tests.gateway.plane import CHAT, ask

LOAD, UNLOAD, COMPLETIONS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
PATH = b'{"error":{"message":"[Errno 2] No such file: /srv/models/store/x/adapter_config.json","code":500}}'
ALREADY = b'{"error":{"message":"The lora adapter \'x\' has already been loaded. If you want","code":400}}'


@asynccontextmanager
async def swapping(slots: tuple[int, ...] = (4, 4)) -> AsyncIterator[tuple[World, str, str]]:
    """A world in which `a` has a live version and another one that no engine has; both versions."""
    world = World(slots)
    try:
        await world.open()
        await world.register("a", 1, promote=True)
        await world.register("a", 2, promote=False)
        for at in range(len(slots)):
            await world.start(at)  # again: what nobody has asked for is not loaded then
        await world.settle()
        for engine in world.engines:
            engine.requests.clear()
        (other,) = world.names["a"].versions.keys() - {world.names["a"].live}
        yield world, str(world.names["a"].live), other
        await world.finish()
    finally:
        await world.close()


@asynccontextmanager
async def traffic(world: World, allowed: set[str]) -> AsyncIterator[list[int]]:
    """Meanwhile four callers ask without a pause; the statuses that they got."""
    over, codes = asyncio.Event(), list[int]()

    async def caller(at: int) -> None:
        while not over.is_set():
            codes.append(await world.ask("a", allowed, stream=at % 2 > 0, user=f"u{at}"))

    callers = [asyncio.create_task(caller(at)) for at in range(4)]
    try:
        yield codes
    finally:
        over.set()
        await asyncio.gather(*callers)


async def promoted(world: World, version: str) -> tuple[int, str]:
    """The status of a promotion, and its message."""
    answer = await world.admin.post("/admin/v1/adapters/a/promote", json={"version": version})
    assert "/srv" not in answer.text
    if answer.status_code == 200:
        world.names["a"].point(version, "promoted")
        return 200, ""
    return answer.status_code, answer.json()["error"]["message"]


def status(code: int, body: bytes) -> Callable[[FakeVLLM, str], None]:
    def spoil(engine: FakeVLLM, name: str) -> None:
        engine.script(Fault.STATUS, times=None, path=LOAD, model=name, status=code, body=body, undone=True)

    return spoil


def fault(what: Fault, path: str = LOAD, **more: Any) -> Callable[[FakeVLLM, str], None]:
    def spoil(engine: FakeVLLM, name: str) -> None:
        engine.script(what, times=None, path=path, model=name, **more)

    return spoil


def lie(engine: FakeVLLM, name: str) -> None:
    engine.lies[name] = "other-adapter"


REFUSED = {
    "500 with a path": (status(500, PATH), "its log says why"),
    "404": (status(404, PATH), "does not see the files"),
    "400": (status(400, PATH), "it answered 400"),
    "an HTML page": (fault(Fault.HTML_502, undone=True), "it answered 502"),
    "already loaded, and it is not": (status(400, ALREADY), "does not know"),
    "a proof that answers 500": (fault(Fault.STATUS, COMPLETIONS), "when a@"),
    "a proof that is no JSON": (fault(Fault.NOT_JSON, COMPLETIONS), "no completion"),
}


@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
@pytest.mark.parametrize("what", REFUSED)
async def test_what_an_engine_refuses_moves_nothing(what: str, everywhere: bool) -> None:
    spoil, said = REFUSED[what]
    async with swapping() as (world, live, other):
        name = world.engine_name("a", other)
        for engine in world.engines if everywhere else world.engines[1:]:
            spoil(engine, name)
        async with traffic(world, {live}) as codes:
            code, message = await promoted(world, other)
        assert code == 502
        assert said in message
        assert message.endswith("a still answers as before.")
        assert set(codes) == {200}
        world.compare("a", (await world.admin.get("/admin/v1/adapters/a")).json())
        for engine in world.engines:
            engine.heal()
        assert await promoted(world, other) == (200, "")  # an operator does not wait for a back-off


@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
async def test_weights_that_answer_wrongly_go_live_nowhere(everywhere: bool) -> None:
    """One lies: it is found out by what the other said. All lie in one way: as if it were right, so they lie apart."""
    async with swapping() as (world, live, other):
        name = world.engine_name("a", other)
        assert (await world.ask(f"a@{other}", {other})) == 200  # one engine has it, and what it says is kept
        for at, engine in enumerate(world.engines):
            if everywhere or name not in engine.loaded:
                engine.loaded.pop(name, None)
                engine.lies[name] = f"something else, {at}"
        world.gateway.started.gateway.adapters._reconciler.wake()
        async with traffic(world, {live}) as codes:
            code, message = await promoted(world, other)
        assert code == 502
        assert "It answers unlike" in message or "it answers unlike" in message
        assert set(codes) == {200}
        for engine in world.engines:
            engine.lies.clear()
            await engine.restart()  # as the message says
        await world.settle()
        assert await promoted(world, other) == (200, "")


async def test_a_load_whose_answer_was_lost_is_sent_again() -> None:
    """The engine has loaded it and cannot say so; a connection that breaks is no engine that is gone."""
    async with swapping() as (world, live, other):
        name = world.engine_name("a", other)
        for engine in world.engines:
            engine.script(Fault.CLOSE_BEFORE_HEAD, path=LOAD, model=name)
        async with traffic(world, {live, other}) as codes:
            assert await promoted(world, other) == (200, "")
        assert set(codes) == {200}


async def test_a_promotion_does_not_rely_on_what_was_seen_before() -> None:
    """All engines have it, are restarted unseen, and refuse it now."""
    async with swapping() as (world, live, other):
        for version in (live, other):
            assert (await world.ask(f"a@{version}", {version})) == 200
        for at, engine in enumerate(world.engines):
            await world.start(at)
            engine.script(Fault.STATUS, times=None, path=LOAD, model=world.engine_name("a", other), undone=True)
        code, message = await promoted(world, other)
        assert (code, message.endswith("a still answers as before.")) == (502, True)
        for engine in world.engines:
            engine.heal()
        assert await promoted(world, other) == (200, "")


@pytest.mark.parametrize("path", [LOAD, COMPLETIONS], ids=["while it loads", "while it is proven"])
async def test_an_engine_that_dies_in_the_middle_of_it(path: str) -> None:
    async with swapping() as (world, live, other):
        name = world.engine_name("a", other)
        dying = world.engines[1]
        dying.script(Fault.STALL_BEFORE_HEAD, path=path, model=name)
        async with traffic(world, {live, other}) as codes:
            moving = asyncio.create_task(promoted(world, other))
            async with asyncio.timeout(20):
                while not any(seen.path == path and name.encode() in seen.body for seen in dying.requests):
                    await asyncio.sleep(0.005)
            await world.kill(1)
            code, message = await moving
            assert code in (200, 502), message
            await world.settle()
        assert set(codes) == {200}
        await world.start(1)
        await world.settle()
        if code != 200:
            assert await promoted(world, other) == (200, "")


async def test_an_engine_that_dies_between_flip_and_unload() -> None:
    async with swapping() as (world, live, other):
        await world.register("a", 3, promote=True)
        dying = world.engines[1]
        dying.requests.clear()
        dying.script(Fault.STALL_BEFORE_HEAD, path=UNLOAD)
        async with traffic(world, set(world.names["a"].versions)) as codes:
            assert await promoted(world, other) == (200, "")  # the first one has no part any more
            async with asyncio.timeout(20):
                while not any(seen.path == UNLOAD for seen in dying.requests):
                    await asyncio.sleep(0.005)
            await world.kill(1)
            await world.settle()
        assert set(codes) == {200}
        await world.start(1)
        await world.settle()
        await world.until(lambda: not world.left_over(), "rest")
        assert all(world.engine_name("a", live) not in engine.loaded for engine in world.engines)


async def test_an_engine_that_keeps_what_it_was_told_to_forget_is_told_again(tmp_path: Path) -> None:
    """Unloads fail while versions are removed: their files go, and no request ever reaches what is listed still."""
    async with swapping() as (world, live, other):
        assert await promoted(world, other) == (200, "")
        engine = world.engines[1]
        engine.script(Fault.STATUS, times=None, path=UNLOAD, undone=True)
        await world.remove("a", live)
        assert (await world.ask(f"a@{live}", set(), refused=(404,))) == 404
        engine.heal()
        world.gateway.started.gateway.adapters._reconciler.wake()
        await world.until(lambda: world.engine_name("a", live) not in engine.loaded, "the second try")
        assert world.engine_name("a", live) not in os.listdir(world.data / "adapters")


async def test_engines_that_come_back_with_another_base_unseen_answer_nobody() -> None:
    """Requests find out first: what they ask for is loaded nowhere any more, and must not be loaded on those."""
    async with swapping((4, 4, 4, 4)) as (world, live, other):
        for version in (live, other):
            assert await world.ask(f"a@{version}", {version}) == 200
        await world.start(0)
        await world.settle()
        for at in (1, 2, 3):
            await world.start(at, OTHER_BASE)
        for version in (other, live):
            assert await world.ask(f"a@{version}", {version}) == 200
        assert await promoted(world, other) == (200, "")
        assert not any(engine.loaded for engine in world.engines[1:])


async def test_engines_that_all_come_back_empty_unseen_are_filled_by_the_requests() -> None:
    async with swapping() as (world, live, other):
        assert await promoted(world, other) == (200, "")
        for _ in range(3):
            for at in range(2):
                await world.start(at)
            for version in (live, other):
                async with asyncio.timeout(20):
                    while (code := await world.ask(f"a@{version}", {version})) != 200:
                        assert code == 503  # a connection of before broke twice: a second's pause
                        await asyncio.sleep(0.1)


@asynccontextmanager
async def standing_still(world: World, model: str, version: str) -> AsyncIterator[None]:
    """Meanwhile a stream runs on `model`; then it goes on, and is whole and right."""
    said = "still- it is said"
    gate = world.gates["still-"] = asyncio.Event()
    async with world.http.stream("POST", CHAT, json=ask(CHAT, said, model=model, stream=True)) as answer:
        assert answer.status_code == 200
        yield
        gate.set()
        text, broken = spoken(answer, await answer.aread())
    assert not broken
    world.check(model, answer.headers["x-loragate-model"], text, said, {version})


async def test_a_request_that_comes_while_an_unload_waits_for_its_turn_keeps_the_weights() -> None:
    """A load is before it. Unloaded under that request and loaded again, the name would end the engine."""
    async with swapping((4,)) as (world, live, other):
        assert await promoted(world, other) == (200, "")
        engine, model = world.engines[0], f"a@{live}"
        gate = world.gates["b@"] = asyncio.Event()
        loading = asyncio.create_task(world.register("b", 3, promote=False))
        await world.until(lambda: any(name.startswith("b@") for name in engine.loads), "the load")
        unloading = asyncio.create_task(world.admin.post("/admin/v1/adapters/a/unload", json={"version": live}))
        serial = world.gateway.started.gateway.adapters._reconciler._replicas[engine.url]._serial
        await world.until(lambda: bool(serial._waiters), "the unload")
        async with standing_still(world, model, live):
            gate.set()
            answer = await unloading
            assert answer.status_code == 409
            assert answer.json()["error"]["message"].startswith(f"Requests still run on {model}.")
            assert await world.ask(model, {live}) == 200
            world.look()
        await loading
        world.names["a"].unloaded.add(live)
        world.names["a"].history.append(("unloaded", live))
        del world.gates["b@"]


async def test_what_goes_live_while_an_unload_waits_stays() -> None:
    async with swapping((4,)) as (world, _, other):
        async with standing_still(world, f"a@{other}", other):
            unloading = asyncio.create_task(world.admin.post("/admin/v1/adapters/a/unload", json={"version": other}))
            async with asyncio.timeout(20):
                while "unloaded" not in await history(world):  # from here on it waits for the stream to end
                    await asyncio.sleep(0.01)
            world.names["a"].history.append(("unloaded", other))
            assert await promoted(world, other) == (200, "")
        answer = await unloading
        assert (answer.status_code, f"a@{other} is live" in answer.text) == (409, True)
        assert world.engine_name("a", other) in world.engines[0].loaded


async def history(world: World) -> list[str]:
    """What happened to `a`."""
    return [event["what"] for event in (await world.admin.get("/admin/v1/adapters/a/history")).json()["data"]]
