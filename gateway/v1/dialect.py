"""One row per inference route: how it is asked, how its streams end and break, where it says what was used.

Must not know keys, limits or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.errors import ServiceError
from gateway.v1.fields import Checked, Table
from gateway.v1.fields_chat import CHAT
from gateway.v1.fields_completions import COMPLETIONS, EMBEDDINGS
from gateway.v1.fields_messages import COUNT_TOKENS, MESSAGES
from gateway.v1.fields_responses import RESPONSES
from gateway.v1.wire import anthropic_error, encode, openai_error

# Usage in every chunk costs the engine 80 bytes a token and makes an aborted stream's bill exact.
_USAGE_OPTIONS = {"include_usage": True, "continuous_usage_stats": True}


_SAID = "chat_template_kwargs"
_FINISH = b'"finish_reason":"'


def _bare_error_event(err: ServiceError) -> bytes:
    return b"data: %b\n\n" % openai_error(err)


def _named_error_event(err: ServiceError) -> bytes:
    return b"event: error\ndata: %b\n\n" % anthropic_error(err)


@dataclass(frozen=True, slots=True)
class Dialect:
    name: str  # metrics label
    path: str
    fields: Table = field(repr=False)
    streams: bool = True
    generates: bool = True  # False: no answer tokens to reserve
    injects_usage: bool = False  # streams are asked for usage, and it is taken out again for callers who did not
    adds: Mapping[str, Any] = field(default_factory=dict)  # what every request to the engine says, whatever the caller
    # Streams. Chunks are bare `data:` lines; events name their type in an `event:` line before it.
    named_events: bool = False
    terminators: tuple[bytes, ...] = ()  # the last event: its data (chunks) or its type (events)
    failures: tuple[bytes, ...] = (b"error",)  # types of events that report a failure
    delta_suffix: bytes = b""  # ends the type of every event that carries generated content
    usage_events: tuple[bytes, ...] = ()  # types of events that say what was used, in themselves or in `wrapper`
    wrapper: str = ""
    # Usage: names of its numbers. No `prompt_keys`: the answer is the count itself and costs nothing.
    prompt_keys: tuple[str, ...] = ("prompt_tokens",)
    completion_key: str = "completion_tokens"
    # Why an answer ended: what stands before the engine's word, or bytes that say it by themselves (the first found).
    ends_with: bytes = b""
    ends_where: tuple[tuple[bytes, str], ...] = ()
    error_body: Callable[[ServiceError], bytes] = openai_error
    error_event: Callable[[ServiceError], bytes] = _bare_error_event


_DIALECTS = (
    Dialect("chat", "/v1/chat/completions", CHAT, injects_usage=True, terminators=(b"[DONE]",), ends_with=_FINISH),
    Dialect(
        "completions", "/v1/completions", COMPLETIONS, injects_usage=True, terminators=(b"[DONE]",), ends_with=_FINISH
    ),
    Dialect("embeddings", "/v1/embeddings", EMBEDDINGS, streams=False, generates=False),
    Dialect(
        "responses",
        "/v1/responses",
        RESPONSES,
        adds={"store": False},
        named_events=True,
        terminators=(b"response.completed", b"response.incomplete"),
        failures=(b"error", b"response.failed"),
        delta_suffix=b".delta",
        usage_events=(b"response.completed", b"response.incomplete"),
        wrapper="response",
        prompt_keys=("input_tokens",),
        completion_key="output_tokens",
        ends_where=(
            (b'"incomplete_details":{', "length"),
            (b'"type":"function_call"', "tool_calls"),
            (b'"status":"completed"', "stop"),
        ),
    ),
    Dialect(
        "messages",
        "/v1/messages",
        MESSAGES,
        named_events=True,
        terminators=(b"message_stop",),
        delta_suffix=b"block_delta",
        usage_events=(b"message_start", b"message_delta"),
        wrapper="message",
        prompt_keys=("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        completion_key="output_tokens",
        ends_with=b'"stop_reason":"',
        error_body=anthropic_error,
        error_event=_named_error_event,
    ),
    Dialect(
        "count_tokens",
        "/v1/messages/count_tokens",
        COUNT_TOKENS,
        streams=False,
        generates=False,
        prompt_keys=(),
        error_body=anthropic_error,
        error_event=_named_error_event,
    ),
)

BY_PATH: Mapping[str, Dialect] = {dialect.path: dialect for dialect in _DIALECTS}


def prepare(dialect: Dialect, checked: Checked, engine_name: str, thinking: bool | None = None) -> bytes:
    """The request as the engine gets it: our own serialisation, the engine's name for the weights, usage asked for.

    thinking: what a conversation says to the chat template where its caller says nothing.
    """
    body = {**checked.body, **dialect.adds, "model": engine_name}
    if thinking is not None and _SAID in dialect.fields.fields:
        body[_SAID] = {"enable_thinking": thinking, **(body.get(_SAID) or {})}
    if dialect.injects_usage and checked.stream:
        body["stream_options"] = _USAGE_OPTIONS
    return encode(body)
