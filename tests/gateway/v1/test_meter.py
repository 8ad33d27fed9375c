"""What passes a meter, what it counts, and what it takes for the end: on streams of a real vLLM."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.v1.dialect import BY_PATH
from gateway.v1.meter import BodyMeter, StreamMeter, usage_of
from tests.gateway.v1.recorded_streams import CHAT, STREAMS, Recorded

by_name = {stream.name: stream for stream in STREAMS}
every_stream = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)


def meter(stream: Recorded, *, asked: bool = False, continuous: bool = False, **more: Any) -> StreamMeter:
    more.setdefault("max_event_bytes", 1 << 20)
    return StreamMeter(stream.dialect, strip_usage=not asked, strip_continuous=not continuous, **more)


def state(of: StreamMeter) -> tuple[Any, ...]:
    return (
        of.prompt_tokens, of.completion_tokens, of.deltas, of.has_usage, of.started, of.saw_terminator, of.stopped,
        of.fault, of.end(),
    )  # fmt: skip


def events(data: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in data.split(b"\n\n") if event]


def payloads(data: bytes) -> list[Any]:
    return [orjson.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]


@every_stream
def test_a_whole_stream(stream: Recorded) -> None:
    one = meter(stream, asked=True, continuous=True)
    assert one.feed(stream.data) == stream.data
    assert one.end() is None
    assert one.saw_terminator
    assert (one.prompt_tokens, one.completion_tokens) == (stream.prompt_tokens, stream.completion_tokens)
    assert one.deltas == stream.deltas
    assert one.feed(b"data: more\n\n") == b""


@every_stream
def test_every_cut_is_noticed(stream: Recorded) -> None:
    data = stream.data
    for cut in range(len(data)):
        one = meter(stream)
        passed = one.feed(data[:cut])
        assert one.end() in ("quiet_end", "half_event"), cut
        assert not one.saw_terminator
        assert passed == b"" or passed.endswith(b"\n\n")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_splits_change_nothing(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(STREAMS))
    raw = stream.data
    if data.draw(st.booleans()):
        raw = raw.replace(b"\n", b"\r\n")
    if data.draw(st.booleans()):
        raw = b": comment\n\n" + raw
    asked, continuous = data.draw(st.booleans()), data.draw(st.booleans())
    limit = data.draw(st.sampled_from([1 << 20, 700, 330]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    whole = meter(stream, asked=asked, continuous=continuous, max_event_bytes=limit)
    expected = b"".join(whole.feed(event) for event in [raw])
    parts = meter(stream, asked=asked, continuous=continuous, max_event_bytes=limit)
    passed = b"".join(parts.feed(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    assert passed == expected
    assert state(parts) == state(whole)


def test_one_event_at_a_time_is_the_same_as_all_at_once() -> None:
    for stream in STREAMS:
        whole, single = meter(stream), meter(stream)
        expected = whole.feed(stream.data)
        assert b"".join(single.feed(event) for event in events(stream.data)) == expected
        assert state(single) == state(whole)


# Usage that the caller did not ask for ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat_continuous", "completions_continuous", "chat_two_answers"])
def test_usage_is_taken_out(name: str) -> None:
    stream = by_name[name]
    one = meter(stream)
    before, after = payloads(stream.data), payloads(one.feed(stream.data))
    assert all("usage" not in payload for payload in after)
    wanted = [{k: v for k, v in payload.items() if k != "usage"} for payload in before if payload["choices"]]
    assert after == wanted
    assert (one.prompt_tokens, one.completion_tokens) == (stream.prompt_tokens, stream.completion_tokens)


@pytest.mark.parametrize("name", ["chat_continuous", "completions_continuous"])
def test_last_usage_only(name: str) -> None:
    stream = by_name[name]
    after = payloads(meter(stream, asked=True).feed(stream.data))
    assert [("usage" in payload) for payload in after] == [False] * (len(after) - 1) + [True]
    assert after[-1]["choices"] == []


def test_usage_with_details_inside() -> None:
    stream = by_name["chat_continuous"]
    raw = stream.data.replace(
        b'"completion_tokens_details":null', b'"completion_tokens_details":{"reasoning_tokens":1}'
    )
    one = meter(stream)
    assert b"usage" not in one.feed(raw)
    assert (one.prompt_tokens, one.completion_tokens) == (19, 3)


def test_text_that_looks_like_usage_is_left_alone() -> None:
    stream = by_name["chat_continuous"]
    fake = json.dumps('x],"usage":{"prompt_tokens":99},"error":{"a":1},"model":"tiny"}').encode()
    raw = stream.data.replace(b'"content":"\\n"', b'"content":' + fake)
    one = meter(stream, rename=(b"tiny", b"public"))
    after = payloads(one.feed(raw))
    assert one.end() is None
    assert one.prompt_tokens == 19
    assert after[1]["choices"][0]["delta"]["content"] == json.loads(fake)
    assert {payload["model"] for payload in after} == {"public"}


@pytest.mark.parametrize(("name", "at"), [("chat_continuous", ("model",)), ("responses", ("response", "model")),
                                          ("messages", ("message", "model"))])  # fmt: skip
def test_rename(name: str, at: tuple[str, ...]) -> None:
    stream = by_name[name]
    after = payloads(meter(stream, rename=(b"tiny", b"ft:base:org::x@0123456789ab")).feed(stream.data))
    named: set[Any] = set()
    for payload in after:
        value: Any = payload
        for key in at:
            value = value.get(key) if isinstance(value, dict) else None
        named.add(value)
    assert named - {None} == {"ft:base:org::x@0123456789ab"}


# Aborted streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "prompt", "completion"),
    [("chat_continuous", 3, 19, 2), ("completions_continuous", 2, 5, 2), ("messages", 4, 19, 2)],
)
def test_an_aborted_stream_has_a_bill(name: str, kept: int, prompt: int, completion: int) -> None:
    stream = by_name[name]
    one = meter(stream)
    one.feed(b"".join(events(stream.data)[:kept]))
    assert one.has_usage
    assert (one.prompt_tokens, one.completion_tokens) == (prompt, completion)


def test_without_usage_deltas_are_counted() -> None:
    stream = by_name["chat_plain"]
    one = meter(stream)
    first, second, *_ = events(stream.data)
    one.feed(first)
    assert not one.started  # it only said "assistant"
    one.feed(second)
    assert one.started
    assert not one.has_usage
    assert one.completion_tokens == one.deltas == 1


def test_several_answers_at_once_are_not_billed_as_one() -> None:
    chunk = events(by_name["chat_continuous"].data)[1]
    one = meter(by_name["chat_continuous"])
    for index in range(4):
        one.feed(chunk.replace(b'"index":0', b'"index":%d' % index))
    assert one.completion_tokens == 4  # every chunk says 1, of its own answer


# Broken streams --------------------------------------------------------------------------------------------

VLLM_ERROR = b'data: {"error": {"message": "boom at /srv/engine", "type": "InternalServerError", "param": null}}\n\n'
ENGINE_ERRORS = [
    (CHAT, VLLM_ERROR),
    (CHAT, b'data: {"id":"x","choices":[],"error":{"message":"boom"}}\n\n'),
    (CHAT, b'data:{"object":"error","message":"boom"}\n\n'),
    (CHAT, b'event: error\ndata: {"message":"boom"}\n\n'),
    (CHAT, b"data: Internal Server Error\n\n"),
    (CHAT, b"data: [1]\n\n"),
    (CHAT, b"event: error\n\n"),
    ("/v1/completions", VLLM_ERROR),
    ("/v1/responses", VLLM_ERROR),
    ("/v1/responses", b'event: error\ndata: {"type":"error","message":"boom"}\n\n'),
    ("/v1/responses", b'event: response.failed\ndata: {"type":"response.failed","response":{}}\n\n'),
    ("/v1/responses", b'data: {"type":"response.failed","response":{}}\n\n'),
    ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"boom"}}\n\n'),
    ("/v1/messages", b'event: error\r\ndata: {"type":"error"}\r\n\r\n'),
]


@pytest.mark.parametrize(("path", "error"), ENGINE_ERRORS)
def test_an_engines_error_is_held_back(path: str, error: bytes) -> None:
    stream = next(stream for stream in STREAMS if stream.path == path)
    first, *rest = events(stream.data)
    one = meter(stream, asked=True, continuous=True)
    assert one.feed(first + error + b"".join(rest)) == first
    assert one.fault == "engine_error"
    assert one.stopped
    assert not one.saw_terminator
    assert one.end() == "engine_error"
    assert one.feed(b"data: [DONE]\n\n") == b""


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_null_errors_and_comments_pass(path: str) -> None:
    stream = next(stream for stream in STREAMS if stream.path == path)
    first, *_ = events(stream.data)
    harmless = first.replace(b"data: {", b'data: {"error":null,') + b": ping\n\n\n\n"
    one = meter(stream, asked=True, continuous=True)
    assert one.feed(harmless) == harmless
    assert one.fault is None


@pytest.mark.parametrize("pieces", [1, 7, 5000])
def test_a_huge_line_ends_the_stream(pieces: int) -> None:
    stream = by_name["chat_continuous"]
    first = events(stream.data)[0]
    huge = b"data: " + b"x" * 10_000
    one = meter(stream, asked=True, continuous=True, max_event_bytes=4096)
    passed = one.feed(first)
    step = -(-len(huge) // pieces)
    for at in range(0, len(huge), step):
        passed += one.feed(huge[at : at + step])
    assert passed == first
    assert one.fault == "oversized_event"
    assert one.end() == "oversized_event"


# Whole answers ---------------------------------------------------------------------------------------------


def answer(size: int = 0, **more: Any) -> bytes:
    usage = {"prompt_tokens": 19, "total_tokens": 22, "completion_tokens": 3, "prompt_tokens_details": {"cached": 1}}
    body = {"id": "x", "model": "tiny", "choices": ["y" * size], "usage": usage, "kv_transfer_params": None}
    return orjson.dumps({**body, **more})


@pytest.mark.parametrize("size", [0, 20_000, 200_000])
def test_usage_of_an_answer(size: int) -> None:
    chat = BY_PATH[CHAT]
    assert usage_of(chat, answer(size)) == (19, 3)
    one = BodyMeter(chat, 1 << 20)
    body = answer(size)
    assert b"".join(one.feed(body[at : at + 9_999]) for at in range(0, len(body), 9_999)) == body
    assert one.usage() == (19, 3)
    assert not one.stopped


@pytest.mark.parametrize("size", [0, 20_000])
def test_a_usage_deeper_down_is_not_taken_for_it(size: int) -> None:
    body = orjson.dumps({
        "usage": {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 2},
        "pad": "y" * size,
        "content": [{"type": "tool_use", "input": {"a": 1, "usage": {"input_tokens": 1000, "output_tokens": 1000}}}],
    })  # fmt: skip
    assert usage_of(BY_PATH["/v1/messages"], body) == (7, 7)


@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b"{", b"[]", b"null", answer(0)[:-1], answer(20_000)[:-1],
                                  answer(usage=None), answer(usage={"prompt_tokens": -1}),
                                  answer(usage={"prompt_tokens": True}), answer(usage={})])  # fmt: skip
def test_answers_that_do_not_say(body: bytes) -> None:
    assert usage_of(BY_PATH[CHAT], body) is None


def test_other_dialects_answers() -> None:
    embeddings = b'{"data":[],"usage":{"prompt_tokens":8,"total_tokens":8,"completion_tokens":0}}'
    assert usage_of(BY_PATH["/v1/embeddings"], embeddings) == (8, 0)
    responses = b'{"output":[],"usage":{"input_tokens":8,"output_tokens":2,"total_tokens":10}}'
    assert usage_of(BY_PATH["/v1/responses"], responses) == (8, 2)
    assert usage_of(BY_PATH["/v1/messages/count_tokens"], b'{"input_tokens":8}') == (0, 0)
    assert usage_of(BY_PATH["/v1/messages/count_tokens"], b'{"tokens":8}') is None


def test_a_large_answer_is_renamed_and_bounded() -> None:
    chat, body = BY_PATH[CHAT], answer(50_000)
    one = BodyMeter(chat, 60_000, rename=(b"tiny", b"public"))
    assert orjson.loads(one.feed(body))["model"] == "public"
    assert one.feed(body) == b""
    assert one.stopped
