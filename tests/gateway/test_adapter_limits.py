"""Limits of one adapter through HTTP: for all its callers and versions, of no other, and they outlive a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import CHAT, ask, at_rest, counted, quiet, usage
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora

PATH = "/admin/v1/adapters"


async def registered(gateway: Running, name: str, seed: int) -> str:
    """A new live version of `name`; its 12 digits."""
    source = str(tiny_lora(gateway.data_dir.parent / f"{name}-{seed}", seed))
    async with gateway.admin() as admin:
        made = await admin.post(PATH, json={"source": source, "name": name, "promote": True})
    assert made.status_code == 201, made.text
    live: str = made.json()["live"]
    return live


async def limit(gateway: Running, name: str, **limits: int | None) -> None:
    async with gateway.admin() as admin:
        changed = await admin.patch(f"{PATH}/{name}", json=limits)
    assert changed.status_code == 200, changed.text


async def codes(http: httpx.AsyncClient, times: int, **fields: Any) -> list[int]:
    return [(await http.post(CHAT, json=ask(CHAT, **fields))).status_code for _ in range(times)]


async def test_of_one_adapter_and_no_other(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        old = await registered(gateway, "a", 1)
        await registered(gateway, "a", 2)
        await registered(gateway, "b", 3)
        await limit(gateway, "a", rpm=3)
        keys = [await counted(gateway) for _ in range(2)]
        async with await gateway.http(keys[0]) as one, await gateway.http(keys[1]) as two:
            assert await codes(one, 2, model="a") == [200, 200]
            pinned = await two.post(CHAT, json=ask(CHAT, model=f"a@{old}"))
            assert (pinned.status_code, pinned.headers["x-ratelimit-remaining-requests"]) == (200, "0")
            for http, model in ((one, "a"), (two, "a"), (two, f"a@{old}")):
                refused = await http.post(CHAT, json=ask(CHAT, model=model))
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
                assert error["message"].startswith("Model a is limited to 3 requests a minute")
                assert 1 <= int(refused.headers["retry-after"]) <= 20
                assert refused.headers["x-ratelimit-limit-requests"] == "3"
            assert await codes(two, 5, model="b") + await codes(two, 5) == [200] * 10
            answer = await two.post(CHAT, json=ask(CHAT, model="b"))
            assert "x-ratelimit-limit-requests" not in answer.headers
            await limit(gateway, "a", rpm=None)
            assert await codes(one, 5, model="a") == [200] * 5
        await at_rest(gateway)


async def test_the_tighter_of_key_and_adapter_counts(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        for name, seed in (("a", 1), ("b", 2)):
            await registered(gateway, name, seed)
        await limit(gateway, "a", rpm=2)
        async with await gateway.http(await counted(gateway, rpm=4)) as http:
            assert await codes(http, 3, model="a") == [200, 200, 429]
            assert await codes(http, 3, model="b") == [200, 200, 429], "four of the key, two were used for a"
            said = (await http.post(CHAT, json=ask(CHAT, model="b"))).json()["error"]["message"]
            assert said.startswith("This key")


async def test_requests_at_once_of_one_adapter(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        for name, seed in (("a", 1), ("b", 2)):
            await registered(gateway, name, seed)
        await limit(gateway, "a", concurrency=1)
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.STALL_BETWEEN)
            stuck = asyncio.create_task(http.post(CHAT, json=ask(CHAT, model="a", stream=True)))
            await engine.working(1)
            assert await codes(http, 1, model="a") + await codes(http, 1, model="b") == [429, 200]
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)
            await engine.idle()
            assert await codes(http, 1, model="a") == [200]
        await at_rest(gateway)


async def test_its_own_win_over_the_settings_field_by_field(engine: FakeVLLM, tmp_path: Path) -> None:
    given = {"a": {"rpm": 1, "daily_tokens": 1000}}
    async with quiet(tmp_path / "data", [engine], model_limits=given) as gateway:
        await registered(gateway, "a", 1)
        await limit(gateway, "a", rpm=3)
        async with await gateway.http(await counted(gateway)) as http:
            large = await http.post(CHAT, json=ask(CHAT, model="a", max_tokens=2000))
            assert large.json()["error"]["code"] == "insufficient_quota", "of the settings"
            assert large.headers["x-should-retry"] == "false"
            assert await codes(http, 4, model="a", max_tokens=20) == [200, 200, 200, 429], "of its own"


async def test_a_daily_budget_of_its_own_survives_a_restart(engine: FakeVLLM, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with quiet(data, [engine]) as gateway:
        await registered(gateway, "a", 1)
        await limit(gateway, "a", daily_tokens=400)
        key = await counted(gateway)
        async with await gateway.http(key) as http:
            answered = (await codes(http, 40, model="a", max_tokens=20)).count(200)
        assert 2 <= answered < 40
        await at_rest(gateway)
        before = await usage(gateway, group_by="model")
    async with quiet(data, [engine]) as gateway, await gateway.http(key) as http:
        assert await codes(http, 2, model="a", max_tokens=20) == [429, 429]
        assert await codes(http, 1, max_tokens=20) == [200]
        await limit(gateway, "a", daily_tokens=800)
        more = (await codes(http, 40, model="a", max_tokens=20)).count(200)
        assert 0 < more <= answered + 400 // 20, "what was used before the restart still counts"
        await at_rest(gateway)
        after = [row for row in await usage(gateway, group_by="model") if row["model"] == "a"]
        assert before[0]["total_tokens"] < after[0]["total_tokens"] <= 800
