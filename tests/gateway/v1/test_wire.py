"""Strict JSON in, our own JSON out, and nothing of an engine's text that could hurt."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.errors import InvalidRequest, ServiceError
from gateway.errors import (
    ContextLengthExceeded,
    InvalidJson,
    ModelLoading,
    ModelNotFound,
    Overloaded,
    RateLimited,
    RequestTooLarge,
    Unauthenticated,
    UnsupportedEndpoint,
    UpstreamError,
)
from gateway.v1 import wire
from gateway.v1.snapshot import Target
from tests.recorded import rows

DEPTH = 64


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


BAD = {
    "empty": b"",
    "spaces": b"  ",
    "half": b'{"a":',
    "two documents": b"{}{}",
    "list": b"[]",
    "string": b'"a"',
    "null": b"null",
    "not UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without mark": '{"a":1}'.encode("utf-16-le"),
    "BOM": b"\xef\xbb\xbf{}",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "1e999": b'{"a":1e999}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "lone surrogate in a key": b'{"\\udc00":1}',
    "encoded surrogate": b'{"a":"\xed\xa0\x80"}',
    "2**64": b'{"a":18446744073709551616}',
    "-2**63-1": b'{"a":[{"b":-9223372036854775809}]}',
    "5000 digits": b'{"a":' + b"1" * 5000 + b"}",
    "300 digits": b'{"a":' + b"1" * 300 + b"}",
    "too deep": nested(DEPTH + 1),
    "far too deep": nested(100_000),
    "comment": b"{} // x",
    "single quotes": b"{'a':1}",
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_refused(raw: bytes) -> None:
    with pytest.raises(InvalidJson) as caught:
        wire.parse(raw, DEPTH)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":18446744073709551615}', {"a": 2**64 - 1}),
        (b'{"a":-9223372036854775808}', {"a": -(2**63)}),
        (b'{"a":"12345678901234567890123"}', {"a": "12345678901234567890123"}),
        (b'{"a":1234567890.12345678901234567890}', {"a": 1234567890.1234567}),
        (b'{"a":1e300}', {"a": 1e300}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\N{GRINNING FACE}"}),
        (b' {"a":"[[[{{{"} ', {"a": "[[[{{{"}),
        (nested(DEPTH), json.loads(nested(DEPTH))),
        (b'{"a":"' + b"[" * 200 + b'"}', {"a": "[" * 200}),
        (b"{" + b",".join(b'"%d":[]' % i for i in range(200)) + b"}", {str(i): [] for i in range(200)}),
    ],
)
def test_accepted(raw: bytes, value: Any) -> None:
    assert wire.parse(raw, DEPTH) == value


def test_the_message_repeats_nothing_of_the_body() -> None:
    for raw in (b'{"a": canary}', b'{"a":"canary" "b"}', b'["canary"]', b'{"canary":18446744073709551616}'):
        with pytest.raises(InvalidJson) as caught:
            wire.parse(raw, DEPTH)
        assert "canary" not in caught.value.message


scalars = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(st.characters(codec=None))
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(
    st.binary()
    | values.map(lambda value: json.dumps(value).encode())
    | values.map(lambda v: json.dumps({"a": v}).encode())
)
@example(b'{"a":1e308}')
@example(b'{"a":-0.0}')
@settings(max_examples=300, deadline=None)
def test_any_bytes(raw: bytes) -> None:
    """Either refused, or an object that we can write and read again unchanged."""
    try:
        body = wire.parse(raw, DEPTH)
    except InvalidJson:
        return
    assert wire.parse(wire.encode(body), DEPTH) == body


# Errors ----------------------------------------------------------------------------------------------------


def test_envelopes() -> None:
    error = ModelNotFound("No such model.", param="model")
    assert json.loads(wire.openai_error(error)) == {
        "error": {
            "message": "No such model.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert json.loads(wire.anthropic_error(error)) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "No such model."},
    }
    assert json.loads(wire.openai_error(ServiceError("x")))["error"]["param"] is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (Unauthenticated("x"), "authentication_error"),
        (RateLimited("x"), "rate_limit_error"),
        (RequestTooLarge("x"), "request_too_large"),
        (Overloaded("x"), "overloaded_error"),
        (UpstreamError("x", code="upstream_error"), "api_error"),
        (ServiceError("x"), "api_error"),
    ],
)
def test_anthropics_own_type_names(error: ServiceError, kind: str) -> None:
    assert json.loads(wire.anthropic_error(error))["error"]["type"] == kind


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (InvalidRequest("x"), []),
        (RateLimited("x", retry_after_s=7), [(b"retry-after", b"7")]),
        (RateLimited("x", retry_after_s=0), [(b"retry-after", b"1")]),
        (RateLimited("x", retry_after_s=9999), [(b"retry-after", b"120")]),
        (RateLimited("x", retryable=False), [(b"x-should-retry", b"false")]),
        (RateLimited("x", retryable=True), [(b"x-should-retry", b"true")]),
        (Unauthenticated("x"), [(b"www-authenticate", b"Bearer")]),
    ],
)
def test_error_headers(error: ServiceError, headers: list[tuple[bytes, bytes]]) -> None:
    assert wire.error_headers(error) == headers
    assert wire.error_lines(error) == b"".join(b"%b: %b\r\n" % header for header in headers)


# Models ----------------------------------------------------------------------------------------------------


def test_models() -> None:
    base, adapter = Target("demo", "demo", None, created=1), Target("cs", "cs@0123456789ab", "0123456789ab", created=2)
    rendered = json.loads(wire.models_body([base, adapter], "demo"))
    plain = {"object": "model", "owned_by": "loragate"}
    assert rendered == {
        "object": "list",
        "data": [
            {"id": "demo", "created": 1, "parent": None, "version": None, **plain},
            {"id": "cs", "created": 2, "parent": "demo", "version": "0123456789ab", **plain},
        ],
    }
    assert json.loads(wire.model_body(adapter, "demo", "cs")) == rendered["data"][1]
    exact = json.loads(wire.model_body(adapter, "demo", "cs@0123456789ab"))
    assert exact == rendered["data"][1] | {"id": "cs@0123456789ab"}


def test_rename_model() -> None:
    body = orjson.dumps({"choices": [{"text": '"model":"a@1" is what I am'}], "model": "a@1"})
    renamed = orjson.loads(wire.rename_model(body, "a@1", "ft:a@1"))
    assert renamed == {"choices": [{"text": '"model":"a@1" is what I am'}], "model": "ft:a@1"}


@pytest.mark.parametrize(("body", "is_object"), [(b"{}", True), (b"[]", False), (b"<html>", False), (b"", False)])
def test_is_object(body: bytes, is_object: bool) -> None:
    assert wire.is_object(body) is is_object


# An engine's 4xx -------------------------------------------------------------------------------------------


def engine_error(status: int, message: str, param: str | None = None) -> ServiceError:
    body = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}}
    return wire.from_engine_error(status, json.dumps(body).encode(), "support", "eng@0123456789ab")


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input "
              "tokens, which exceeds this limit.", ContextLengthExceeded),
        (400, "The engine prompt length 600 exceeds the max_model_len 512. Please reduce prompt.",
         ContextLengthExceeded),
        (400, "max_tokens=5000 cannot be greater than max_model_len=512. Please request fewer output tokens. "
              "(parameter=max_tokens, value=5000)", ContextLengthExceeded),
        (404, "The model `eng@0123456789ab` does not exist. Valid aliases: tiny.", ModelLoading),
        (404, "Not Found", UnsupportedEndpoint),
        (405, "Method Not Allowed", UnsupportedEndpoint),
        (501, "The model does not support Embeddings API", UnsupportedEndpoint),
        (400, "The model does not support Chat Completions API", UnsupportedEndpoint),
        (400, "Model 'eng@0123456789ab' does not support Matryoshka embeddings", InvalidRequest),
        (400, "LoRA adapter 'eng@0123456789ab' was found but could not be loaded.", UpstreamError),
        (401, "Unauthorized", UpstreamError),
        (403, "Forbidden", UpstreamError),
        (413, "too large", RequestTooLarge),
        (422, "seed must be an integer", InvalidRequest),
        (429, "busy", Overloaded),
        (503, "busy", Overloaded),
        (418, "teapot", UpstreamError),
    ],
)  # fmt: skip
def test_kinds(status: int, message: str, kind: type[ServiceError]) -> None:
    error = engine_error(status, message)
    assert type(error) is kind
    assert "eng@" not in error.message


def test_context_length_keeps_the_numbers() -> None:
    error = engine_error(400, "This model's maximum context length is 512 tokens. However, your prompt contains at "
                              "least 513 input tokens, which exceeds this limit.")  # fmt: skip
    assert "512" in error.message
    assert "513" in error.message


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("temperature must be in [0, 2], got 3.0.", "temperature must be in [0, 2]."),
        ("n must be at least 1, got 0. (parameter=n, value=0)", "n must be at least 1."),
        ("The decoder prompt cannot be empty", "The decoder prompt cannot be empty."),
        ("when using `logprobs`, model eng@0123456789ab is wrong", None),
        (
            "bad_words cannot contain an empty string. Got bad_words=['canary']",
            "bad_words cannot contain an empty string.",
        ),
    ],
)
def test_short_harmless_text_is_shown(message: str, shown: str | None) -> None:
    error = engine_error(400, message, "body.n")
    if shown is not None:
        assert error.message == shown
    assert error.param == "n"
    assert "canary" not in error.message


def test_a_thinking_budget_where_nothing_thinks_out_loud() -> None:
    said = "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/or …"
    assert "leave `thinking_token_budget` (`thinking` in messages) out." in engine_error(400, said).message


@pytest.mark.parametrize(
    "message",
    [
        "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'input': 'canary'}",
        "canary in /usr/lib/python3/site-packages/x.py",
        "canary see http://10.0.0.1:8000/x",
        "canary 10.0.0.1 refused",
        "canary at 0x7f00aa",
        "canary: set VLLM_MAX_N_SEQUENCES",
        "Traceback canary",
        "canary \N{SNOWMAN}",
        "canary 'two words'",
        "canary " * 60,
        "",
    ],
)
def test_any_other_text_is_not(message: str) -> None:
    error = engine_error(400, message, "a" * 100)
    assert "canary" not in error.message
    assert error.message.endswith(".")
    assert error.param is None


@pytest.mark.parametrize("body", [b"", b"<html>canary</html>", b"[]", b'{"error":"canary"}', b'{"error":{"message":7}}',
                                  b'{"detail":"Not Found"}', b"\xff"])  # fmt: skip
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
def test_bodies_of_any_shape(status: int, body: bytes) -> None:
    assert "canary" not in wire.from_engine_error(status, body, "support", "eng").message


def test_everything_that_a_real_engine_was_recorded_to_refuse() -> None:
    routes = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings")
    refused = [row for row in rows() if row["path"] in routes and row["status"] >= 400]
    assert len(refused) > 15
    for row in refused:
        error = wire.from_engine_error(row["status"], json.dumps(row["shape"]).encode(), "support", "tiny")
        assert "tiny" not in error.message
        assert "<" not in error.message
        assert "Valid aliases" not in error.message


def test_an_engines_text_that_begins_with_what_it_got_is_not_shown() -> None:
    body = orjson.dumps({"error": {"message": "got prompt of the caller", "type": "BadRequestError", "code": 400}})
    error = wire.from_engine_error(400, body, "m", "m")
    assert "caller" not in error.message
