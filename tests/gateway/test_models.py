"""/v1/models with the official SDK: what is listed is what would answer, and who may delete what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import CHAT, ask, error_of
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"


@pytest.fixture
async def gateway(engine: FakeVLLM, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", [engine]) as up:
        yield up


async def register(gateway: Running, name: str, seed: int, **more: object) -> dict[str, Any]:
    source = str(tiny_lora(gateway.data_dir.parent / f"{name}-{seed}", seed))
    async with gateway.admin() as admin:
        made = await admin.post(ADAPTERS, json={"source": source, "name": name, "promote": True, **more})
    assert made.status_code in (201, 502), made.text
    found: dict[str, Any] = made.json()
    return found


async def listed(gateway: Running, key: str | None = None) -> list[str]:
    async with await gateway.openai(key) as client:
        return [model.id async for model in client.models.list()]


async def until_listed(gateway: Running, key: str, *names: str, asking: tuple[str, ...]) -> None:
    """Until that is the list, with requests for `asking` meanwhile: each sees at once what an engine has lost."""
    async with asyncio.timeout(30), await gateway.http(key) as http:
        while await listed(gateway, key) != [*names]:
            for name in asking:
                await http.post(CHAT, json=ask(CHAT, model=name))
            await asyncio.sleep(0.02)


# What is listed -----------------------------------------------------------------------------------------------


def hide(gateway: Running, name: str) -> Path:
    """From now on no engine can load it: the weights lie elsewhere. Returns where they should be."""
    (weights,) = (gateway.data_dir / "adapters").glob(f"{name}@*/adapter_model.safetensors")
    weights.rename(gateway.data_dir / f"{name}.hidden")
    return weights


async def test_what_no_engine_takes_is_not_listed_until_one_does(tmp_path: Path) -> None:
    async with FakeVLLM() as one, FakeVLLM() as two, running(tmp_path / "data", [one, two]) as gateway:
        key = await gateway.key()
        live = {name: (await register(gateway, name, seed))["live"] for seed, name in enumerate(("bad", "good"))}
        assert await listed(gateway, key) == ["demo-base", "bad", "good"]
        weights = hide(gateway, "bad")
        await one.restart()
        async with await gateway.http(key) as http:  # the other one still has it
            async with asyncio.timeout(30):
                while not gateway.started.gateway.proxy.fleet.replicas[0].resident.isdisjoint({f"bad@{live['bad']}"}):
                    await http.post(CHAT, json=ask(CHAT, model="bad"))
            assert await listed(gateway, key) == ["demo-base", "bad", "good"]
            await two.restart()
            await until_listed(gateway, key, "demo-base", "good", asking=("bad", "good"))
            for name in ("bad", f"bad@{live['bad']}"):
                answer = await http.get(f"/v1/models/{name}")
                assert (answer.status_code, error_of(CHAT, answer.json())["code"]) == (404, "model_not_found"), name
            refused = await http.post(CHAT, json=ask(CHAT, model="bad"))
            assert (refused.status_code, error_of(CHAT, refused.json())["code"]) == (503, "model_loading")
            assert (await http.get(f"/v1/models/good@{live['good']}")).status_code == 200
            (gateway.data_dir / "bad.hidden").rename(weights)
            await until_listed(gateway, key, "demo-base", "bad", "good", asking=("bad",))
            assert (await http.post(CHAT, json=ask(CHAT, model="bad"))).status_code == 200


async def until_ready(gateway: Running, ready: bool) -> None:
    async with asyncio.timeout(30):
        while gateway.started.gateway.health.ready()[0] is not ready:
            await asyncio.sleep(0.005)


async def test_the_list_stays_while_no_engine_answers(gateway: Running, engine: FakeVLLM) -> None:
    key = await gateway.key()
    await register(gateway, "a", 1)
    await engine.stop()
    await until_ready(gateway, False)
    assert await listed(gateway, key) == ["demo-base", "a"]
    weights = hide(gateway, "a")
    await engine.start()
    await until_listed(gateway, key, "demo-base", asking=("a",))
    await engine.stop()
    await until_ready(gateway, False)
    assert await listed(gateway, key) == ["demo-base"], "as it was when an engine was last seen"
    (gateway.data_dir / "a.hidden").rename(weights)
    await engine.start()
    await until_listed(gateway, key, "demo-base", "a", asking=("a",))


async def test_only_names_and_times_are_shown(gateway: Running, engine: FakeVLLM) -> None:
    live = (await register(gateway, "a", 1))["versions"][0]
    async with await gateway.http() as http:
        page = (await http.get("/v1/models")).json()
        one = (await http.get(f"/v1/models/a@{live['version']}")).json()
    said = {"created": live["created_at"], "parent": "demo-base", "version": live["version"]}
    said |= {"object": "model", "owned_by": "loragate"}
    assert page["data"][1] == {"id": "a", **said}
    assert one == {"id": f"a@{live['version']}", **said}
    assert (page["data"][0]["parent"], page["data"][0]["version"]) == (None, None)


# Delete -------------------------------------------------------------------------------------------------------


async def refusal(client: openai.AsyncOpenAI, model: str) -> tuple[int, str | None]:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.models.delete(model)
    return caught.value.status_code, caught.value.code


async def test_whoever_owns_it_deletes_it(gateway: Running, engine: FakeVLLM, tmp_path: Path) -> None:
    owner, other, blind = await gateway.key(), await gateway.key(), await gateway.key(models=frozenset({"b"}))
    trainer = await gateway.key(scopes=frozenset({"training"}))
    boss_of_b = await gateway.key(scopes=frozenset({"admin"}), models=frozenset({"b"}))
    await register(gateway, "a", 1, owner=owner.split("-")[1])
    await register(gateway, "b", 2)
    for name, key, expected in (
        ("a", other, (403, "insufficient_scope")),
        ("a", trainer, (403, "insufficient_scope")),
        ("a", blind, (404, "model_not_found")),
        ("a", boss_of_b, (404, "model_not_found")),
        ("b", owner, (403, "insufficient_scope")),
        ("nobody", owner, (404, "model_not_found")),
        ("a@0123456789ab", owner, (404, "model_not_found")),
        ("a@", other, (404, "model_not_found")),
        ("a@", owner, (404, "model_not_found")),  # a version that is missing is not all of them
        ("../a", owner, (404, "model_not_found")),
        ("demo-base", owner, (403, "insufficient_scope")),
        ("demo-base", blind, (404, "model_not_found")),
    ):
        async with await gateway.openai(key) as client:
            assert await refusal(client, name) == expected, name
    async with await gateway.openai(owner) as client:
        gone = await client.models.delete("a")
        assert (gone.id, gone.object, gone.deleted) == ("a", "model", True)
        assert await refusal(client, "a") == (404, "model_not_found")
    assert await listed(gateway, owner) == ["demo-base", "b"]
    assert [name.partition("@")[0] for name in engine.loaded] == ["b"]
    assert len(list((gateway.data_dir / "adapters").glob("a@*"))) == 0
    async with gateway.admin() as admin:
        event = (await admin.get(f"{ADAPTERS}/a/history")).json()["data"][0]
    assert (event["what"], event["by"], event["why"]) == ("removed", owner.split("-")[1], "DELETE /v1/models")


async def test_a_version_that_answers_is_refused_once_and_for_all(gateway: Running) -> None:
    boss = await gateway.key(scopes=frozenset({"admin"}))
    old = (await register(gateway, "a", 1))["live"]
    live = (await register(gateway, "a", 2))["live"]
    spare = next(
        v["version"]
        for v in (await register(gateway, "a", 3, promote=False))["versions"]
        if v["version"] not in (old, live)
    )
    async with gateway.admin() as admin:
        await admin.post(f"{ADAPTERS}/a/canary", json={"version": spare, "percent": 5})
    async with await gateway.openai(boss, max_retries=2) as client:
        for version in (live, spare):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.models.delete(f"a@{version}")
            assert caught.value.code == "model_in_use"
            assert caught.value.request.headers["x-stainless-retry-count"] == "0"
        assert (await client.models.delete(f"a@{old}")).id == f"a@{old}"
    async with gateway.admin() as admin:
        left = (await admin.get(f"{ADAPTERS}/a")).json()
    assert ({v["version"] for v in left["versions"]}, left["previous"]) == ({live, spare}, None)


async def test_without_a_good_key_nothing_is_said(gateway: Running) -> None:
    await register(gateway, "a", 1)
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http:
        for headers in ({}, {"authorization": "Bearer lg-no"}, {"authorization": f"Bearer {gateway.admin_key}"}):
            answers = [await http.delete(f"/v1/models/{name}", headers=headers) for name in ("a", "nobody")]
            assert {(a.status_code, a.text) for a in answers} == {(401, answers[0].text)}
        for method in ("PUT", "POST", "PATCH"):
            wrong = await http.request(method, "/v1/models/a")
            assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, DELETE")
    assert await listed(gateway) == ["demo-base", "a"]
