"""Limits and usage through HTTP: what is refused and how, what is charged, and that no budget is ever passed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import RateLimitError

from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import (
    CHAT,
    COUNT,
    EMBEDDINGS,
    MESSAGES,
    MODEL,
    ROUTES,
    STREAMS,
    ask,
    at_rest,
    counted,
    error_of,
    page,
    quiet,
    total,
    usage,
)
from tests.gateway.running import Running

KINDS = ("requests", "tokens")
SPAN = re.compile(r"\d+ms|\d+s|\d+m\d+s|\d+h\d+m\d+s")


@asynccontextmanager
async def one(
    tmp_path: Path, engine: FakeVLLM, grant: dict[str, Any], **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A quiet gateway and one caller with these limits, at rest at the end."""
    async with quiet(tmp_path, [engine], **settings) as gateway:
        async with await gateway.http(await counted(gateway, **grant)) as http:
            yield gateway, http
        await at_rest(gateway)


def limited(answer: httpx.Response, path: str = CHAT, code: str = "rate_limit_exceeded") -> None:
    assert answer.status_code == 429, answer.text
    error = error_of(path, answer.json())
    if path.startswith(MESSAGES):
        assert error["type"] == "rate_limit_error"
    else:
        assert (error["code"], error["type"]) == (code, "requests")
    if code == "insufficient_quota":
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    else:
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert "x-should-retry" not in answer.headers


async def test_requests_per_minute(engine: FakeVLLM, tmp_path: Path) -> None:
    async with one(tmp_path, engine, {"rpm": 3}) as (gateway, http):
        for left in (2, 1, 0):
            answer = await http.post(CHAT, json=ask(CHAT))
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert SPAN.fullmatch(answer.headers["x-ratelimit-reset-requests"])
            assert "x-ratelimit-limit-tokens" not in answer.headers
        for path in ROUTES:
            answer = await http.post(path, json=ask(path))
            limited(answer, path)
            assert int(answer.headers["retry-after"]) <= 20, "one of three comes back in 20 s"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(engine.inferences) == 3
        shown = await page(gateway)
        assert total(shown, "limited", reason="rate_limit_exceeded") == len(ROUTES)
        async with await gateway.http() as other:
            assert (await other.post(CHAT, json=ask(CHAT))).status_code == 200, "another key is not touched"


async def test_rate_headers_are_on_every_answer(engine: FakeVLLM, tmp_path: Path) -> None:
    async with one(tmp_path, engine, {"rpm": 1000, "tpm": 100_000}) as (_, http):

        def check(answer: httpx.Response, status: int) -> None:
            assert answer.status_code == status, answer.text
            for kind in KINDS:
                remaining = int(answer.headers[f"x-ratelimit-remaining-{kind}"])
                assert 0 < remaining <= int(answer.headers[f"x-ratelimit-limit-{kind}"])
                assert SPAN.fullmatch(answer.headers[f"x-ratelimit-reset-{kind}"])

        for path in ROUTES:
            check(await http.post(path, json=ask(path)), 200)
            if path in STREAMS:
                check(await http.post(path, json=ask(path, stream=True)), 200)
                engine.script(Fault.CUT_MID_STREAM)
                check(await http.post(path, json=ask(path, stream=True)), 200)
            for status, wanted in ((500, 502), (503, 503), (400, 400)):
                engine.script(Fault.STATUS, status=status)
                check(await http.post(path, json=ask(path)), wanted)
            check(await http.post(path, content=b"{", headers={"content-type": "application/json"}), 400)
            check(await http.post(path, json=ask(path, model="nobody")), 404)
            check(await http.post(path, json=ask(path, api_base="x")), 400)


async def test_tokens_per_minute(engine: FakeVLLM, tmp_path: Path) -> None:
    async with one(tmp_path, engine, {"tpm": 1000}) as (gateway, http):
        for path in (CHAT, MESSAGES):
            limited(await http.post(path, json=ask(path, max_tokens=2000)), path, "insufficient_quota")
        limited(await http.post(CHAT, json=ask(CHAT, n=3, max_tokens=400)), code="insufficient_quota")
        limited(await http.post(CHAT, json=ask(CHAT)), code="insufficient_quota")  # 1,024 where none is named
        client = await gateway.openai(http.headers["authorization"][7:], max_retries=5)
        async with client:
            with pytest.raises(RateLimitError):
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=2000
                )
        shown = await page(gateway)
        assert total(shown, "requests", code="429") == 5, "the SDK did not try again"
        answer = await http.post(CHAT, json=ask(CHAT, max_tokens=600))
        used = answer.json()["usage"]["total_tokens"]
        before = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert before < 400, "what is reserved is gone while it is answered"
        engine.script(Fault.STALL_BEFORE_HEAD)
        held = asyncio.create_task(http.post(CHAT, json=ask(CHAT, max_tokens=600)))
        await engine.working(1)
        answer = await http.post(CHAT, json=ask(CHAT, max_tokens=600))
        limited(answer)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 400
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        await engine.idle()
        answer = await http.post(COUNT, json=ask(COUNT))
        assert answer.status_code == 200, "counting reserves only the body"
        # The aborted one keeps what it reserved (nobody knows what it made), the first was settled.
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 400 - used


async def race(http: httpx.AsyncClient, engine: FakeVLLM, count: int = 50) -> list[int]:
    """`count` at once, all answered only once all were accepted or refused."""
    engine.script(Fault.SLOW, times=None, delay=0.3)
    answers = await asyncio.gather(*(http.post(CHAT, json=ask(CHAT, max_tokens=100)) for _ in range(count)))
    engine.heal()
    for answer in answers:
        if answer.status_code != 200:
            assert answer.status_code == 429
    return [answer.status_code for answer in answers]


async def test_fifty_at_once_never_pass_a_token_budget(engine: FakeVLLM, tmp_path: Path) -> None:
    async with one(tmp_path, engine, {"tpm": 2000}) as (gateway, http):
        reserved = 100 + len(httpx.Request("POST", "http://x", json=ask(CHAT, max_tokens=100)).content) // 3 + 1
        codes = await race(http, engine)
        accepted = codes.count(200)
        assert accepted == 2000 // reserved
        assert len(engine.inferences) == accepted
        (row,) = await usage(gateway)
        assert row["requests"] == accepted
        assert row["total_tokens"] <= accepted * reserved <= 2000


async def test_fifty_of_two_keys_never_pass_the_budget_of_a_model(engine: FakeVLLM, tmp_path: Path) -> None:
    limits = {MODEL: {"daily_tokens": 2000}}
    async with one(tmp_path, engine, {}, model_limits=limits) as (gateway, http):
        async with await gateway.http(await counted(gateway)) as second:
            both = await asyncio.gather(race(http, engine, 25), race(second, engine, 25))
            accepted = both[0].count(200) + both[1].count(200)
            assert 0 < accepted <= 2000 // 134
            answers = [await client.post(CHAT, json=ask(CHAT, max_tokens=2000)) for client in (http, second)]
            for answer in answers:
                limited(answer, code="insufficient_quota")
                assert MODEL in answer.json()["error"]["message"]
        rows = await usage(gateway, group_by="model")
        assert [row["model"] for row in rows] == [MODEL]
        assert rows[0]["total_tokens"] <= 2000


async def test_requests_at_once(engine: FakeVLLM, tmp_path: Path) -> None:
    async with one(tmp_path, engine, {"concurrency": 2}) as (_, http):
        engine.script(Fault.STALL_BETWEEN, times=2)
        stuck = [asyncio.create_task(http.post(CHAT, json=ask(CHAT, stream=True))) for _ in range(2)]
        await engine.working(2)
        for path in ROUTES:
            limited(await http.post(path, json=ask(path)), path)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await engine.idle()
        for path in ROUTES:
            assert (await http.post(path, json=ask(path))).status_code == 200
        assert len(engine.inferences) == 2 + len(ROUTES)


async def spent(http: httpx.AsyncClient) -> int:
    """Ask until refused; how many were answered."""
    for answered in range(100):
        answer = await http.post(CHAT, json=ask(CHAT, max_tokens=20))
        if answer.status_code != 200:
            limited(answer, code="insufficient_quota")
            return answered
    raise AssertionError("never refused")


async def test_a_daily_budget_survives_a_restart(engine: FakeVLLM, tmp_path: Path) -> None:
    limits = {MODEL: {"daily_tokens": 400}}
    async with quiet(tmp_path, [engine], model_limits=limits) as gateway:
        small, large = await counted(gateway, daily_tokens=200), await counted(gateway)
        async with await gateway.http(small) as http:
            answered = await spent(http)
            assert answered >= 2
            assert "This key" in (await http.post(CHAT, json=ask(CHAT, max_tokens=20))).text
        await at_rest(gateway)
        before = await usage(gateway, group_by="none")
        assert before[0]["total_tokens"] <= 200
    asked = len(engine.inferences)
    async with quiet(tmp_path, [engine], model_limits=limits) as gateway:
        async with await gateway.http(small) as http, await gateway.http(large) as other:
            assert await spent(http) == 0
            assert len(engine.inferences) == asked
            assert await usage(gateway, group_by="none") == before
            more = await spent(other)
            assert 0 < more <= answered + 200 // 11, "the model's own budget was partly used before"
            assert "Model" in (await other.post(CHAT, json=ask(CHAT, max_tokens=20))).text
        await at_rest(gateway)
        after = await usage(gateway, group_by="none")
        assert before[0]["total_tokens"] < after[0]["total_tokens"] <= 400


def tokens_of(path: str, body: dict[str, Any]) -> tuple[int, int]:
    """Prompt and completion tokens as the caller was told."""
    if path == COUNT:
        return 0, 0
    used: dict[str, int] = body["usage"]
    if "input_tokens" in used:
        return used["input_tokens"], used["output_tokens"]
    return used["prompt_tokens"], used["completion_tokens"]


async def test_usage_is_recorded_once_per_answer(engine: FakeVLLM, tmp_path: Path) -> None:
    async with one(tmp_path, engine, {}) as (gateway, http):
        told, requests = [0, 0], 0
        for path in ROUTES:
            prompt, completion = tokens_of(path, (await http.post(path, json=ask(path, "a b c"))).json())
            times = 1
            if path in STREAMS:  # the stream used as much, whoever asks for its usage
                for more in ({}, {"stream_options": {"include_usage": True}}):
                    if more and path not in STREAMS[:2]:
                        continue
                    times += 1
                    assert (await http.post(path, json=ask(path, "a b c", stream=True, **more))).status_code == 200
            requests += times
            told = [told[0] + times * prompt, told[1] + times * completion]
        for path in (CHAT, EMBEDDINGS):
            await http.post(path, json=ask(path, model="nobody"))
            await http.post(path, content=b"{", headers={"content-type": "application/json"})
            engine.script(Fault.STATUS, status=400)
            await http.post(path, json=ask(path))
        (row,) = await usage(gateway, group_by="key,model,day")
        assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (requests, *told)
        assert await usage(gateway, group_by="model", model="nobody") == []
        shown = await page(gateway)
        assert total(shown, "tokens", model=MODEL, kind="prompt") == told[0]
        assert total(shown, "tokens", model=MODEL, kind="completion") == told[1]


async def test_changed_limits_count_at_once(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway, rpm=1)
        async with await gateway.http(key) as http, gateway.admin() as admin:
            codes: Sequence[int] = [(await http.post(CHAT, json=ask(CHAT))).status_code for _ in range(2)]
            assert codes == [200, 429]
            changed = await admin.patch(f"/admin/v1/keys/{key.split('-')[1]}", json={"rpm": None})
            assert changed.status_code == 200, changed.text
            codes = [(await http.post(CHAT, json=ask(CHAT))).status_code for _ in range(5)]
            assert codes == [200] * 5
        await at_rest(gateway)
