"""The table of what an engine can do wrong, end to end: what the caller gets, what is counted, what is given back."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterable, Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AnthropicError
from openai import APIError

from gateway.v1.routing import ReplicaState
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    MODEL,
    RESPONSES,
    SAID,
    STREAMS,
    ask,
    at_rest,
    counted,
    error_of,
    events,
    page,
    quiet,
    total,
)
from tests.gateway.running import Running, running

# Short enough for a test, long against a turn of the loop; the sweep adds up to 0.25 s. Only for what stalls.
QUICK = {"first_byte_timeout_s": 1.0, "answer_timeout_s": 1.0, "idle_timeout_s": 1.0}
PATIENT = {"max_answer_bytes": 2 << 20, "max_event_bytes": 1 << 20}
TOLERANT = {"eject_after": 10_000}
ENGINE_TEXT = ("nginx", "not JSON at all", "Internal server error", "SSH-2", "engine is busy", "/srv/", "canary")

GONE = (502, "upstream_disconnected")
WRONG = (502, "upstream_protocol_error")
FAILED = (502, "upstream_error")
LATE = (504, "upstream_timeout")
BUSY = (503, "overloaded")


@dataclass(frozen=True)
class Row:
    """What happens, and what a caller without and with a stream gets: status and code (200: of the error event)."""

    fault: Fault
    whole: tuple[int, str]
    stream: tuple[int, str]
    kinds: tuple[str | None, str | None]  # of loragate_upstream_errors_total; None: not the replica's fault
    ended: str | None = None  # of loragate_stream_terminated_total
    script: dict[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)


def status(code: int, **more: Any) -> dict[str, Any]:
    return {"status": code, "body": json.dumps({"error": {"message": "not JSON at all /srv/x", **more}}).encode()}


SHORT = (200, "upstream_disconnected")
TABLE = [
    Row(Fault.RESET, GONE, GONE, ("reset", "reset")),
    Row(Fault.CLOSE_BEFORE_HEAD, GONE, GONE, ("reset", "reset")),
    Row(Fault.CLOSE_AFTER_HEAD, GONE, GONE, ("cut", "cut")),
    Row(Fault.CUT_MID_STREAM, GONE, SHORT, ("cut", "upstream_cut"), "upstream_cut"),
    Row(Fault.QUIET_END, WRONG, SHORT, ("protocol", "quiet_end"), "quiet_end"),
    Row(Fault.HALF_EVENT, WRONG, SHORT, ("protocol", "half_event"), "half_event"),
    Row(
        *(Fault.ERROR_EVENT, FAILED, (200, "upstream_error"), ("http_500", "engine_error"), "engine_error"),
        paths=(CHAT, COMPLETIONS, MESSAGES),
    ),
    Row(  # vLLM's own error event of this route does not pass its validation: the stream breaks off
        *(Fault.ERROR_EVENT, FAILED, SHORT, ("http_500", "upstream_cut"), "upstream_cut"), paths=(RESPONSES,)
    ),
    Row(Fault.STALL_BEFORE_HEAD, LATE, LATE, ("first_byte_timeout", "first_byte_timeout")),
    Row(Fault.STALL_BEFORE_FIRST, LATE, LATE, ("idle_timeout", "idle_timeout")),
    Row(Fault.STALL_BETWEEN, LATE, (200, "upstream_timeout"), ("idle_timeout", "upstream_stalled"), "upstream_stalled"),
    Row(Fault.HTML_502, FAILED, FAILED, ("http_502", "http_502")),
    Row(Fault.NOT_JSON, WRONG, (200, "upstream_error"), ("protocol", "engine_error"), "engine_error"),
    Row(Fault.WRONG_CONTENT_TYPE, WRONG, WRONG, ("protocol", "protocol")),
    Row(
        *(Fault.HUGE_LINE, WRONG, (200, "upstream_protocol_error"), ("protocol", None)),  # the caller's own wish
        *("oversized_event", {"size": 1 << 20}),
    ),
    Row(Fault.HUGE_HEAD, WRONG, WRONG, ("protocol", "protocol"), script={"size": 100_000}),
    Row(Fault.REDIRECT, WRONG, WRONG, ("http_302", "http_302")),
    Row(Fault.GZIP, WRONG, WRONG, ("protocol", "protocol")),
    Row(Fault.NOT_HTTP, WRONG, WRONG, ("protocol", "protocol")),
    Row(Fault.STATUS, FAILED, FAILED, ("http_500", "http_500"), script=status(500)),
    Row(Fault.STATUS, BUSY, BUSY, (None, None), script=status(503)),
    Row(Fault.STATUS, BUSY, BUSY, (None, None), script=status(429)),
    Row(Fault.STATUS, WRONG, WRONG, (None, None), script=status(418)),
    Row(
        *(Fault.STATUS, (502, "upstream_refused_key"), (502, "upstream_refused_key"), (None, None)), script=status(401)
    ),
    Row(Fault.STATUS, (400, "invalid_value"), (400, "invalid_value"), (None, None), script=status(400, param="seed")),
    Row(
        *(Fault.STATUS, (400, "context_length_exceeded"), (400, "context_length_exceeded"), (None, None)),
        script={
            "status": 400,
            "body": b'{"error":{"message":"This model\'s maximum context length is 99 tokens. See /srv/x"}}',
        },
    ),
    Row(Fault.STATUS, (413, "request_too_large"), (413, "request_too_large"), (None, None), script=status(413)),
    Row(Fault.STATUS, (400, "unsupported_endpoint"), (400, "unsupported_endpoint"), (None, None), script=status(405)),
]


def check_error(row: Row, path: str, answer: httpx.Response, wanted: tuple[int, str]) -> None:
    code, name = wanted
    where = (row.fault, row.script.get("status"), path, code)
    assert answer.headers["x-request-id"].startswith("req-")
    if code == 200:
        assert answer.headers["content-type"].startswith("text/event-stream"), where
        *before, (kind, document) = events(answer.content)
        assert not [one for one in before if "error" in (one[0], *one[1])], where
        assert b"[DONE]" not in answer.content, where
        assert kind == ("error" if path == MESSAGES else ""), where
    else:
        assert answer.headers["content-type"] == "application/json", where
        document = answer.json()
    error = error_of(path, document)
    assert answer.status_code == code, (where, answer.text)
    if path != MESSAGES:
        assert error["code"] == name, (where, answer.text)
        assert error["type"] == ("server_error" if code == 200 or code >= 500 else "invalid_request_error"), where
    assert ("retry-after" in answer.headers) == (code == 503), where
    assert not [text for text in ENGINE_TEXT if text in answer.text], (where, answer.text)


STALLS = (Fault.STALL_BEFORE_HEAD, Fault.STALL_BEFORE_FIRST, Fault.STALL_BETWEEN)


@pytest.mark.parametrize("stalls", [True, False])
async def test_the_table(engine: FakeVLLM, tmp_path: Path, stalls: bool) -> None:
    kinds: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    async with quiet(tmp_path, [engine], upstream=QUICK if stalls else PATIENT, health=TOLERANT) as gateway:
        replica = gateway.started.gateway.proxy.fleet.replicas[0]
        async with await gateway.http(await counted(gateway)) as http:
            for row in (row for row in TABLE if (row.fault in STALLS) == stalls):
                for stream in (False, True):
                    await engine.close_idle()  # else the first of two failed sends is the keep-alive race
                    while replica.upstream.open_connections:
                        await asyncio.sleep(0)
                    asked, failures = len(engine.inferences), replica.failures
                    for path in row.paths:
                        engine.script(row.fault, times=None, path=path, **row.script)
                    answers = await asyncio.gather(
                        *(http.post(path, json=ask(path, stream=stream)) for path in row.paths)
                    )
                    engine.heal()
                    wanted, kind = (row.stream, row.kinds[1]) if stream else (row.whole, row.kinds[0])
                    for path, answer in zip(row.paths, answers, strict=True):
                        check_error(row, path, answer, wanted)
                        # A stream that broke after its 200 is counted as what it was.
                        codes["502" if answer.status_code == 200 else str(answer.status_code)] += 1
                    where = (row.fault, row.script.get("status"), stream)
                    assert len(engine.inferences) - asked == len(row.paths), where
                    # An answer to the caller's own mistake shows that the engine is well: it starts anew at 0.
                    assert replica.failures in ({failures + len(row.paths)} if kind else {failures, 0}), where
                    if kind is not None:
                        kinds[kind] += len(row.paths)
                    if stream and row.ended is not None:
                        ended[row.ended] += len(row.paths)
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        codes["200"] += 1
        assert replica.failures == 0
        shown = await page(gateway)
        for kind, count in kinds.items():
            assert total(shown, "upstream_errors", replica=engine.url, kind=kind) == count, kind
        assert total(shown, "upstream_errors") == kinds.total()
        for reason, count in ended.items():
            assert total(shown, "stream_terminated", reason=reason) == count, reason
        assert total(shown, "stream_terminated") == ended.total()
        for code, count in codes.items():
            assert total(shown, "requests", code=code) == count, code
        assert total(shown, "requests") == codes.total()
        await at_rest(gateway)


async def test_the_engine_is_gone(engine: FakeVLLM, tmp_path: Path) -> None:
    async with (
        quiet(tmp_path, [engine], health=TOLERANT) as gateway,
        await gateway.http(await counted(gateway)) as http,
    ):
        engine.script(Fault.REFUSE)
        for path in (*STREAMS, EMBEDDINGS):
            answer = await http.post(path, json=ask(path))
            assert answer.status_code == 502
            error = error_of(path, answer.json())
            assert path == MESSAGES or error["code"] == "upstream_unreachable"
            assert str(engine.url).removeprefix("http://") not in answer.text
        await engine.start()
        assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        await at_rest(gateway)


async def test_odd_but_right_answers_are_passed_on(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway, await gateway.http(await counted(gateway)) as http:
        for stream in (False, True):
            for fault in (Fault.SLICED, Fault.EARLY_HINTS, Fault.KEEP_ALIVE_COMMENTS, Fault.SLOW):
                for path in STREAMS:
                    engine.script(fault, delay=0.001)
                    answer = await http.post(path, json=ask(path, "hi", stream=stream))
                    assert answer.status_code == 200, (fault, path, answer.text)
                    assert f"{MODEL}:" in answer.text
                    assert "error" not in [kind for kind, _ in events(answer.content)]
        await at_rest(gateway)


async def test_an_answer_larger_than_allowed_is_cut_visibly(engine: FakeVLLM, tmp_path: Path) -> None:
    async with (
        quiet(tmp_path, [engine], upstream=PATIENT) as gateway,
        await gateway.http(await counted(gateway)) as http,
    ):
        engine.script(Fault.HUGE_BODY, size=8 << 20)
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(CHAT, json=ask(CHAT))
        await engine.idle()
        shown = await page(gateway)
        assert total(shown, "stream_terminated", reason="upstream") == 1
        await at_rest(gateway)


async def drained(asked: Awaitable[AsyncIterable[Any]], into: list[Any]) -> None:
    """Read a client's stream to its end."""
    async for event in await asked:
        into.append(event)


BREAKS = (Fault.CUT_MID_STREAM, Fault.QUIET_END, Fault.HALF_EVENT, Fault.ERROR_EVENT)


async def test_official_clients_raise_wherever_a_stream_breaks(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine], health=TOLERANT) as gateway:
        key = await counted(gateway)
        openai, anthropic = await gateway.openai(key), await gateway.anthropic(key)
        user: Any = [{"role": "user", "content": SAID}]
        async with openai, anthropic:
            for fault, after in itertools.product(BREAKS, (0, 2, 5)):  # before the first event … behind some content
                for path in (CHAT, RESPONSES, MESSAGES):
                    engine.script(fault, path=path, after=after)
                chunks: list[Any] = []
                with pytest.raises(APIError, match=r"answer|engine"):
                    await drained(openai.chat.completions.create(model=MODEL, messages=user, stream=True), chunks)
                said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                assert f"{MODEL}: {SAID}".startswith(said)
                assert len(chunks) <= after
                with pytest.raises(APIError, match=r"answer|engine"):
                    await drained(openai.responses.create(model=MODEL, input=SAID, stream=True), [])
                with pytest.raises(AnthropicError, match=r"answer|engine"):
                    await drained(anthropic.messages.create(model=MODEL, messages=user, max_tokens=64, stream=True), [])
        assert len(engine.inferences) == 3 * 3 * len(BREAKS)
        await at_rest(gateway)


async def test_one_retry_on_the_other_replica_before_the_first_byte(engine: FakeVLLM, tmp_path: Path) -> None:
    async with FakeVLLM() as bad, quiet(tmp_path, [bad, engine], health=TOLERANT) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            for row in TABLE:
                if row.stream not in (GONE, WRONG, FAILED, BUSY) or row.script.get("status") == 418:
                    continue
                bad.script(row.fault, times=None, **row.script)
                for stream in (False, True):
                    at, other = len(bad.inferences), len(engine.inferences)
                    while len(bad.inferences) == at:  # they take turns
                        answer = await http.post(CHAT, json=ask(CHAT, stream=stream))
                        assert answer.status_code == 200, (row.fault, answer.text)
                        assert b"error" not in answer.content
                        other += 1
                    assert len(engine.inferences) == other, row.fault
                bad.heal()
            bad.script(Fault.REFUSE)
            for _ in range(4):
                assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        await at_rest(gateway)


async def test_a_whole_answer_may_take_longer_to_begin_than_a_stream(engine: FakeVLLM, tmp_path: Path) -> None:
    """An engine sends the head of an answer that is not streamed when all of it is generated."""
    bounds = {"first_byte_timeout_s": 0.2, "answer_timeout_s": 60}
    async with quiet(tmp_path, [engine], upstream=bounds) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.STALL_BEFORE_HEAD, path=CHAT)
            assert (await http.post(CHAT, json=ask(CHAT, stream=True))).status_code == 504
            engine.script(Fault.SLOW, path=CHAT, delay=1.0)
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        await at_rest(gateway)


async def test_what_is_never_tried_twice(engine: FakeVLLM, tmp_path: Path) -> None:
    rows = [row for row in TABLE if row.stream[0] in (200, 400, 413, 504) and row.fault is not Fault.STALL_BEFORE_FIRST]
    async with FakeVLLM() as other, quiet(tmp_path, [other, engine], upstream=QUICK, health=TOLERANT) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            for row in rows:
                if CHAT not in row.paths:
                    continue
                for one in (engine, other):
                    one.script(row.fault, times=None, **row.script)
                before = len(engine.inferences) + len(other.inferences)
                await http.post(CHAT, json=ask(CHAT, stream=True))
                assert len(engine.inferences) + len(other.inferences) == before + 1, row.fault
                for one in (engine, other):
                    one.heal()
            for one in (engine, other):
                one.script(Fault.STATUS, times=None)
            before = len(engine.inferences) + len(other.inferences)
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 502
            assert len(engine.inferences) + len(other.inferences) == before + 2, "two attempts, not more"
        await at_rest(gateway)


async def test_failures_in_a_row_eject_and_a_probe_on_the_data_path_brings_back(
    engine: FakeVLLM, tmp_path: Path
) -> None:
    async with running(tmp_path, [engine], health={"eject_s": 0.05, "probe_interval_s": 0.05}) as gateway:
        fleet = gateway.started.gateway.proxy.fleet
        (replica,) = fleet.replicas
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.STATUS, times=20, status=400, path=CHAT)
            for _ in range(20):
                assert (await http.post(CHAT, json=ask(CHAT))).status_code == 400
            assert (replica.state, replica.failures) == (ReplicaState.READY, 0), "a caller's mistake never counts"
            for bad in range(4):
                engine.script(Fault.STATUS, path=CHAT)
                assert (await http.post(CHAT, json=ask(CHAT))).status_code == 502
                assert replica.failures == bad + 1
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
            assert replica.failures == 0, "only failures in a row count"
            # /v1/models stays well all the time: the lying health of an engine that cannot generate.
            engine.script(Fault.STATUS, times=None)
            answers = [await http.post(CHAT, json=ask(CHAT)) for _ in range(6)]
            assert [answer.status_code for answer in answers] == [502] * 5 + [503]
            assert answers[-1].json()["error"]["code"] == "no_engine_ready"
            assert replica.state is ReplicaState.EJECTED
            ready = await http.get("/readyz")
            assert ready.status_code == 503
            assert "is ejected" in ready.text
            assert await gateway.metric("loragate_replica_up", replica=engine.url) == 0
            probes = len(engine.requests)
            await engine.seen(probes + 3)
            assert replica.state is ReplicaState.EJECTED
            assert {seen.path for seen in engine.requests[probes:]} <= {COMPLETIONS, "/v1/models"}
            engine.heal()
            await gateway.until_ready()
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
            assert await gateway.metric("loragate_replica_up", replica=engine.url) == 1
        await at_rest(gateway)


async def test_only_the_bad_one_of_three_is_ejected(engine: FakeVLLM, tmp_path: Path) -> None:
    async with FakeVLLM() as second, FakeVLLM() as bad, quiet(tmp_path, [engine, bad, second]) as gateway:
        bad.script(Fault.RESET, times=None)
        async with await gateway.http(await counted(gateway)) as http:
            for _ in range(30):
                assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        states = {replica.url: replica.state for replica in gateway.started.gateway.proxy.fleet.replicas}
        assert states == {
            engine.url: ReplicaState.READY, bad.url: ReplicaState.EJECTED, second.url: ReplicaState.READY
        }  # fmt: skip
        # Five failures; the first was on the probe's connection, which might have been stale, so it was sent again.
        assert len(bad.inferences) == 6
        await at_rest(gateway)


async def test_an_engine_that_lost_its_model_is_asked_once_more(gateway: Running, engine: FakeVLLM) -> None:
    missing = {"status": 404, "body": b'{"error":{"message":"The model `x` does not exist."}}'}
    async with await gateway.http(await counted(gateway)) as http:
        for times, wanted in ((1, 200), (2, 503)):
            engine.script(Fault.STATUS, times=times, path=CHAT, **missing)  # type: ignore[arg-type]
            answer = await http.post(CHAT, json=ask(CHAT))
            assert answer.status_code == wanted, answer.text
        assert answer.json()["error"]["code"] == "model_loading"
        assert int(answer.headers["retry-after"]) >= 1
    await at_rest(gateway)
