"""Why an answer ended, found in the bytes that pass: only looked for where a canary runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.v1.dialect import BY_PATH
from gateway.v1.meter import StreamMeter, WatchedMeter, finish_of
from tests.gateway.v1.recorded_streams import STREAMS, Recorded

CHAT, MESSAGES, RESPONSES = BY_PATH["/v1/chat/completions"], BY_PATH["/v1/messages"], BY_PATH["/v1/responses"]
every_stream = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)


@every_stream
@pytest.mark.parametrize("piece", [7, 1000, 1 << 20])
def test_of_streams_however_they_are_cut(stream: Recorded, piece: int) -> None:
    more: dict[str, Any] = {"strip_usage": True, "strip_continuous": True, "max_event_bytes": 1 << 20}
    plain, watched = StreamMeter(stream.dialect, **more), WatchedMeter(stream.dialect, **more)
    for at in range(0, len(stream.data), piece):
        assert watched.feed(stream.data[at : at + piece]) == plain.feed(stream.data[at : at + piece])
    assert watched.finish == "length", "all of them were recorded with few max_tokens"
    assert plain.finish == ""
    assert (watched.completion_tokens, watched.end()) == (plain.completion_tokens, plain.end())


@pytest.mark.parametrize(
    ("word", "reason"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"), ("content_filter", "content_filter"),
     ("abort", "other")],
)  # fmt: skip
def test_of_whole_answers(word: str, reason: str) -> None:
    said = 'so "finish_reason":"length"'
    choice = {"message": {"content": said}, "finish_reason": word, "stop_reason": None}
    body = json.dumps({"id": "x", "choices": [choice], "usage": {}}, separators=(",", ":")).encode()
    assert finish_of(CHAT, body) == reason


def test_of_whole_messages() -> None:
    for word, reason in (("end_turn", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls")):
        content = [{"type": "tool_use", "input": {"stop_reason": "refusal"}}]
        body = json.dumps({"content": content, "stop_reason": word, "usage": {}}, separators=(",", ":")).encode()
        assert finish_of(MESSAGES, body) == reason


def test_of_whole_responses() -> None:
    done: dict[str, Any] = {"incomplete_details": None, "output": [{"type": "message"}], "status": "completed"}
    for change, reason in (
        ({}, "stop"),
        ({"incomplete_details": {"reason": "max_output_tokens"}, "status": "incomplete"}, "length"),
        ({"output": [{"type": "function_call", "status": "completed"}]}, "tool_calls"),
    ):
        assert finish_of(RESPONSES, json.dumps({**done, **change}, separators=(",", ":")).encode()) == reason


def test_where_nothing_says_it() -> None:
    assert finish_of(CHAT, b'data: {"id":"x","choices":[{"finish_reason":null}]}\n\n') == ""
    assert finish_of(BY_PATH["/v1/embeddings"], b'{"finish_reason":"stop"}') == ""
