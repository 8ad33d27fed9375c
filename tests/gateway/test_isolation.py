"""One bad adapter never hurts another, and a key sees nothing of what it may not use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.v1.routing import ReplicaState
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import CHAT, MESSAGES, MODEL, ROUTES, ask, at_rest, counted, error_of, quiet
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"
UNSEEN = "The model `?` does not exist or this key may not use it. GET /v1/models lists what it may."


async def register(gateway: Running, name: str, seed: int, **more: object) -> dict[str, Any]:
    source = str(tiny_lora(gateway.data_dir.parent / f"{name}-{seed}", seed))
    async with gateway.admin() as admin:
        made = await admin.post(ADAPTERS, json={"source": source, "name": name, "promote": True, **more})
    assert made.status_code in (201, 502), made.text
    found: dict[str, Any] = made.json()
    return found


async def code(http: httpx.AsyncClient, model: str, **fields: Any) -> int:
    return (await http.post(CHAT, json=ask(CHAT, model=model, **fields))).status_code


async def test_weights_that_no_engine_takes_cost_others_nothing(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        await register(gateway, "good", 1)
        bad = f"bad@{(await register(gateway, 'bad', 2))['live']}"
        (gateway.data_dir / "adapters" / bad / "adapter_model.safetensors").unlink()
        await engine.restart()
        (replica,) = gateway.started.gateway.proxy.fleet.replicas
        async with await gateway.http(await counted(gateway)) as http:
            assert await code(http, "good") == 200  # the first one finds that the engine has forgotten all
            before = len(engine.loads)
            codes = await asyncio.gather(*(code(http, name) for name in ("bad", "good", MODEL) * 15))
            assert set(codes[0::3]) == {503}
            assert set(codes[1::3] + codes[2::3]) == {200}
            assert (replica.state, replica.failures) == (ReplicaState.READY, 0)
            assert len(engine.loads) - before <= 2, "a load that failed is not tried again for every request"
        await at_rest(gateway)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_adapter_that_always_fails_ejects_no_engine(engine: FakeVLLM, tmp_path: Path, stream: bool) -> None:
    async with quiet(tmp_path / "data", [engine], health={"eject_after": 3}) as gateway:
        await register(gateway, "good", 1)
        bad = f"bad@{(await register(gateway, 'bad', 2))['live']}"
        engine.script(Fault.STATUS, times=None, model=bad)
        (replica,) = gateway.started.gateway.proxy.fleet.replicas
        async with await gateway.http(await counted(gateway)) as http:
            for _ in range(5):
                assert [await code(http, "bad", stream=stream) for _ in range(5)] == [502] * 5
                assert replica.state is ReplicaState.READY
                assert await code(http, "good", stream=stream) == await code(http, MODEL, stream=stream) == 200
        await at_rest(gateway)


async def test_an_engine_that_fails_for_two_is_ejected(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine], health={"eject_after": 4}) as gateway:
        for seed, name in enumerate(("a", "b")):
            await register(gateway, name, seed)
        engine.script(Fault.STATUS, times=None)
        (replica,) = gateway.started.gateway.proxy.fleet.replicas
        async with await gateway.http(await counted(gateway)) as http:
            assert [await code(http, "a") for _ in range(6)] == [502] * 6
            assert replica.ejections == 0, "so far it may be the adapter"
            assert await code(http, "b") == 502
            assert replica.state is ReplicaState.EJECTED
        await at_rest(gateway)


async def test_connections_that_break_eject_whoever_asked(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine], health={"eject_after": 3}) as gateway:
        await register(gateway, "a", 1)
        engine.script(Fault.RESET, times=None)
        (replica,) = gateway.started.gateway.proxy.fleet.replicas
        async with await gateway.http(await counted(gateway)) as http:
            assert [await code(http, "a") for _ in range(3)] == [502] * 3
            assert replica.state is ReplicaState.EJECTED
        await at_rest(gateway)


async def test_limits_and_canaries_of_another_are_not_seen(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        await register(gateway, "mine", 1)
        live = (await register(gateway, "theirs", 2))["live"]
        versions = (await register(gateway, "theirs", 3, promote=False))["versions"]
        tried = next(version["version"] for version in versions if version["version"] != live)
        async with gateway.admin() as admin:
            began = await admin.post(f"{ADAPTERS}/theirs/canary", json={"version": tried, "percent": 100})
            limited = await admin.patch(f"{ADAPTERS}/theirs", json={"rpm": 1, "daily_tokens": 1})
            assert began.status_code == limited.status_code == 200, began.text
        async with await gateway.http(await counted(gateway, models=frozenset({"mine"}))) as http:
            assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["mine"]
            asked = len(engine.inferences)
            for name in ("theirs", f"theirs@{live}", f"theirs@{tried}", "nobody"):
                for path in ROUTES:
                    answer = await http.post(path, json=ask(path, model=name))
                    said = error_of(path, answer.json())
                    assert (answer.status_code, said["message"].replace(name, "?")) == (404, UNSEEN)
                    assert path.startswith(MESSAGES) or said["code"] == "model_not_found"
                    assert not [key for key in answer.headers if key.startswith(("x-ratelimit", "x-loragate"))]
                for method in ("GET", "DELETE"):
                    answer = await http.request(method, f"/v1/models/{name}")
                    assert (answer.status_code, error_of(CHAT, answer.json())["code"]) == (404, "model_not_found")
            assert len(engine.inferences) == asked
            answer = await http.post(CHAT, json=ask(CHAT, model="mine"))
            assert answer.status_code == 200
            assert "theirs" not in str(answer.headers) + answer.text
        await at_rest(gateway)


async def test_an_adapter_that_is_gone_leaves_its_labels(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        await register(gateway, "mine", 1)
        pinned = f"theirs@{(await register(gateway, 'theirs', 2, promote=False))['versions'][0]['version']}"
        async with await gateway.http(await counted(gateway)) as http, gateway.admin() as admin:
            asked = [await code(http, model) for model in ("mine", pinned, "nobody")]
            assert asked == [200, 200, 404]
            assert "theirs" in (await admin.get("/metrics")).text
            await register(gateway, "another", 3)
            for model in ("mine", "theirs", "none"):
                assert await gateway.metric("loragate_requests_total", model=model) == 1, "it is still there"
            await admin.delete(f"{ADAPTERS}/theirs")
            page = (await admin.get("/metrics")).text
            assert "theirs" not in page
            assert 'model="mine"' in page
        await at_rest(gateway)


async def test_who_names_no_model_sees_nothing_of_one_that_is_called_none(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        await register(gateway, "none", 1)
        async with gateway.admin() as admin:
            assert (await admin.patch(f"{ADAPTERS}/none", json={"rpm": 5})).status_code == 200
        async with await gateway.http() as http:
            assert await code(http, "none") == 200
        async with await gateway.http(await gateway.key(models=frozenset({MODEL}))) as http:
            answer = await http.post(CHAT, json=ask(CHAT, model="nobody"))
            assert answer.status_code == 404
            assert not [key for key in answer.headers if key.startswith("x-ratelimit")]
