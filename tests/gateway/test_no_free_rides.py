"""Ways to have tokens without paying, or to pay for none: answers too large to hold, refusals, odd counts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import QuotaExceeded
from gateway.v1.dialect import BY_PATH
from gateway.v1.limits import Ledger
from gateway.v1.meter import BodyMeter, StreamMeter
from gateway.v1.snapshot import NO_LIMITS, Limits
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import CHAT, COMPLETIONS, STREAMS, ask, at_rest, counted, page, quiet, total, usage
from tests.gateway.test_callers import Caller, wire

MIB = 1 << 20


def whole(after_usage: int, **more: Any) -> bytes:
    """A chat answer as vLLM orders it: prompt_logprobs and prompt_token_ids come behind the usage."""
    used = {"prompt_tokens": 70, "total_tokens": 377, "completion_tokens": 307, "prompt_tokens_details": None}
    answer: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "demo-base", "choices": []}
    answer |= {"usage": used, "prompt_logprobs": "y" * after_usage, "prompt_token_ids": None, **more}
    return json.dumps(answer, separators=(",", ":")).encode()


async def test_usage_in_front_of_megabytes_of_logprobs_is_charged(engine: FakeVLLM, tmp_path: Path) -> None:
    engine.script(Fault.STATUS, status=200, body=whole(2 * MIB))
    async with quiet(tmp_path, [engine]) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            assert (await http.post(CHAT, json=ask(CHAT))).json()["usage"]["completion_tokens"] == 307
        await at_rest(gateway)
        (row,) = await usage(gateway)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (70, 307)


@pytest.mark.parametrize("piece", [7, 1000, 65_536, 1 << 20])
def test_usage_is_found_wherever_the_pieces_are_cut(piece: int) -> None:
    body = whole(200_000, prompt_token_ids=list(range(20_000)))
    meter = BodyMeter(BY_PATH[CHAT], MIB)
    for at in range(0, len(body), piece):
        meter.feed(body[at : at + piece])
    assert meter.usage() == (70, 307)


def test_what_a_model_says_is_never_taken_for_the_usage() -> None:
    said = '{"a":1,"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    call = {"function": {"name": "f", "arguments": said}}
    body = whole(100_000, kv_transfer_params=None, prompt_text=said, metrics=call)
    meter = BodyMeter(BY_PATH[CHAT], MIB)
    meter.feed(body)
    assert meter.usage() == (70, 307)


async def test_an_answer_too_large_to_pass_keeps_its_reservation(engine: FakeVLLM, tmp_path: Path) -> None:
    """All of it was generated, and 4 MiB of it were received."""
    engine.script(Fault.HUGE_BODY, size=8 * MIB)
    async with quiet(tmp_path, [engine], upstream={"max_answer_bytes": 4 * MIB}) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(CHAT, json=ask(CHAT, n=2, max_tokens=100))
        await at_rest(gateway)
        (row,) = await usage(gateway)
        assert row["completion_tokens"] == 200


async def test_a_stream_left_before_it_began_costs_its_prompt(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        for path in STREAMS:
            engine.script(Fault.STALL_BEFORE_FIRST)
            key = await counted(gateway)
            async with Caller(gateway, wire(key, path, ask(path, stream=True))):
                await engine.working(1)
            await asyncio.wait_for(engine.idle(), 5)
            await at_rest(gateway)
            (row,) = await usage(gateway, key=key.split("-")[1])
            assert row["completion_tokens"] == 0, path
            assert row["prompt_tokens"] > 0, path


async def test_what_the_engine_refuses_counts_as_a_request(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        async with await gateway.http(await counted(gateway, rpm=3)) as http:
            codes = [(await http.post(CHAT, json=ask(CHAT, "w " * 5000))).status_code for _ in range(6)]
        assert codes == [400, 400, 400, 429, 429, 429]
        assert len(engine.inferences) == 3
        await at_rest(gateway)
        assert await usage(gateway) == []


async def test_an_aborted_stream_of_several_prompts_pays_for_all_of_them(engine: FakeVLLM, tmp_path: Path) -> None:
    prompts = ["a b c d e f g h " * 40, "i", "j"]
    engine.script(Fault.STALL_BETWEEN, after=3)
    async with quiet(tmp_path, [engine]) as gateway:
        async with Caller(
            gateway, wire(await counted(gateway), COMPLETIONS, ask(COMPLETIONS, prompt=prompts, stream=True))
        ) as reader:
            while b'"index":2' not in await reader.readline():
                pass
        await asyncio.wait_for(engine.idle(), 5)
        await at_rest(gateway)
        (row,) = await usage(gateway)
        assert row["prompt_tokens"] >= sum(len(prompt) for prompt in prompts) // 3


@pytest.mark.parametrize("count", [2**63 - 1, 2**40, -1, True, "7"])
def test_a_count_that_is_none_is_not_charged(count: Any) -> None:
    """2**63 tokens once on the books would close a key for good, and a sum of two does not fit into a database."""
    used = json.dumps({"prompt_tokens": count, "total_tokens": 1, "completion_tokens": 1}, separators=(",", ":"))
    meter = StreamMeter(BY_PATH[CHAT], strip_usage=True, strip_continuous=True, max_event_bytes=MIB)
    meter.feed(b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n' * 3)
    meter.feed(b'data: {"id":"x","choices":[],"usage":%b}\n\ndata: [DONE]\n\n' % used.encode())
    assert (meter.prompt_tokens, meter.has_usage, meter.deltas) == (0, False, 3)


async def test_an_absurd_count_costs_neither_the_key_nor_the_books(engine: FakeVLLM, tmp_path: Path) -> None:
    used = {"prompt_tokens": 1, "total_tokens": 1, "completion_tokens": 2**63 - 1}
    engine.script(Fault.STATUS, times=2, status=200, body=whole(0, usage=used))
    async with quiet(tmp_path, [engine]) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            codes = [(await http.post(CHAT, json=ask(CHAT))).status_code for _ in range(3)]
        assert codes == [502, 502, 200]
        await at_rest(gateway)
        (row,) = await usage(gateway)
        assert row["total_tokens"] < 100


async def test_an_event_that_is_too_large_is_not_held_against_the_engine(engine: FakeVLLM, tmp_path: Path) -> None:
    """`echo` and `logprobs` of a long prompt are one event: whoever asks for them must not eject an engine."""
    engine.script(Fault.HUGE_LINE, times=6, size=MIB)
    settings: dict[str, Any] = {"upstream": {"max_event_bytes": MIB // 2}, "health": {"eject_after": 3}}
    async with quiet(tmp_path, [engine], **settings) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            for _ in range(6):
                answer = await http.post(CHAT, json=ask(CHAT, stream=True))
                assert b"upstream_protocol_error" in answer.content
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        assert total(await page(gateway), "stream_terminated", reason="oversized_event") == 6
        await at_rest(gateway)


def test_a_daily_budget_that_comes_and_goes_forgets_nothing() -> None:
    ledger = Ledger()
    with_budget, without = Limits(tpm=10_000_000, daily_tokens=1000), Limits(tpm=10_000_000)
    ledger.reserve("k", with_budget, "m", NO_LIMITS, 500, 0.0, 0.0).settle(400)
    for _ in range(10):
        ledger.reserve("k", without, "m", NO_LIMITS, 500, 0.0, 0.0).settle(50)
    with pytest.raises(QuotaExceeded):
        ledger.reserve("k", with_budget, "m", NO_LIMITS, 200, 0.0, 0.0)
    ledger.reserve("k", with_budget, "m", NO_LIMITS, 100, 0.0, 0.0)
