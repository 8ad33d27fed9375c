"""The table of routes: what reaches the engine, and how a broken stream is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import UpstreamError
from gateway.settings import RequestCaps
from gateway.v1.dialect import BY_PATH, Dialect, prepare
from gateway.v1.fields import check

ERROR = UpstreamError("The engine's connection was lost.", code="upstream_disconnected")
every_dialect = pytest.mark.parametrize("dialect", BY_PATH.values(), ids=lambda dialect: dialect.name)


def test_one_row_per_route() -> None:
    assert {path: dialect.name for path, dialect in BY_PATH.items()} == {
        "/v1/chat/completions": "chat",
        "/v1/completions": "completions",
        "/v1/embeddings": "embeddings",
        "/v1/responses": "responses",
        "/v1/messages": "messages",
        "/v1/messages/count_tokens": "count_tokens",
    }


@every_dialect
def test_streams_have_an_end(dialect: Dialect) -> None:
    assert bool(dialect.terminators) is dialect.streams
    assert ("stream" in dialect.fields.fields) is dialect.streams
    assert dialect.generates is bool(dialect.fields.answer_tokens)


@every_dialect
def test_errors_in_the_routes_own_envelope(dialect: Dialect) -> None:
    body, event = json.loads(dialect.error_body(ERROR)), dialect.error_event(ERROR)
    *fields, end, nothing = event.decode().split("\n")
    assert (end, nothing) == ("", "")
    if dialect.name in ("messages", "count_tokens"):
        assert fields[0] == "event: error"
        assert body == {"type": "error", "error": {"type": "api_error", "message": ERROR.message}}
    else:
        assert len(fields) == 1
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert json.loads(fields[-1].removeprefix("data: ")) == body


def prepared(path: str, **body: object) -> dict[str, object]:
    dialect = BY_PATH[path]
    sent: dict[str, object] = json.loads(
        prepare(dialect, check(dialect.fields, {"model": "public", **body}, RequestCaps()), "engine@0123456789ab")
    )
    return sent


MESSAGES = [{"role": "user", "content": "hello"}]


def test_the_engine_is_asked_under_its_own_name_and_for_usage() -> None:
    assert prepared("/v1/chat/completions", messages=MESSAGES, stream=True) == {
        "model": "engine@0123456789ab",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    asked = prepared("/v1/completions", prompt="x", stream=True, stream_options={"include_usage": False})
    assert asked["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_nothing_is_added_where_nothing_is_streamed() -> None:
    for stream in ({}, {"stream": False}, {"stream": None}):
        assert "stream_options" not in prepared("/v1/chat/completions", messages=MESSAGES, **stream)
    assert "stream_options" not in prepared("/v1/messages", messages=MESSAGES, max_tokens=5, stream=True)
    responses = prepared("/v1/responses", input="x", stream=True, stream_options={"include_obfuscation": False})
    assert responses == {"model": "engine@0123456789ab", "input": "x", "stream": True, "store": False}


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, False),
        ({"chat_template_kwargs": None}, False),
        ({"chat_template_kwargs": {}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_a_conversation_is_asked_as_the_weights_were_trained_unless_the_caller_says(
    path: str, given: dict[str, Any], sent: bool
) -> None:
    dialect = BY_PATH[path]
    checked = check(dialect.fields, {"model": "public", **ASKED[path], **given}, RequestCaps())
    body = json.loads(prepare(dialect, checked, "engine", thinking=False))
    assert body["chat_template_kwargs"] == {"enable_thinking": sent}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_what_is_no_conversation_has_no_thinking(path: str) -> None:
    dialect = BY_PATH[path]
    checked = check(dialect.fields, {"model": "public", "prompt" if "comp" in path else "input": "x"}, RequestCaps())
    assert "chat_template_kwargs" not in json.loads(prepare(dialect, checked, "engine", thinking=False))


def test_preparing_twice_is_the_same() -> None:
    """A retry on another replica sends the same bytes: the checked body is not changed by preparing it."""
    dialect = BY_PATH["/v1/chat/completions"]
    checked = check(dialect.fields, {"model": "public", "messages": MESSAGES, "stream": True}, RequestCaps())
    assert prepare(dialect, checked, "engine") == prepare(dialect, checked, "engine")
    assert checked.body["model"] == "public"
