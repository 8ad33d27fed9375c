"""The allow-list of /v1/chat/completions: OpenAI's fields, vLLM's sampling fields, messages and their parts."""

from __future__ import annotations

from typing import Any

from gateway.settings import RequestCaps
from gateway.v1.fields import Table
from gateway.v1.fields_rules import (
    Refused,
    base64_data,
    boolean,
    data_url,
    ignored,
    integer,
    items,
    one_of,
    only,
    schema,
    shape,
    text,
    text_or,
    unless_empty,
    variant,
)
from gateway.v1.fields_sampling import (
    AUDIO_FORMATS,
    CHAT_TEMPLATE_KWARGS,
    EFFORT,
    GENERATION,
    IMAGE_TYPES,
    KIND,
    MAX_NAME,
    MAX_PARTS,
    MODEL,
    OPENAI_ANNOTATIONS,
    STRUCTURED_OUTPUTS,
)

_NAME = text(MAX_NAME)

_TEXT_PART = shape({"type": KIND, "text": text(), "cache_control": ignored}, "text")
_TEXT_PARTS = items(variant("type", {"text": _TEXT_PART}), MAX_PARTS, 1)
_USER_PARTS = items(
    variant(
        "type",
        {
            "text": _TEXT_PART,
            "image_url": shape(
                {
                    "type": KIND,
                    "image_url": shape(
                        {"url": data_url(*IMAGE_TYPES), "detail": one_of("auto", "low", "high", "original")}, "url"
                    ),
                    "cache_control": ignored,
                },
                "image_url",
            ),
            "input_audio": shape(
                {
                    "type": KIND,
                    "input_audio": shape({"data": base64_data, "format": one_of(*AUDIO_FORMATS)}, "data", "format"),
                    "cache_control": ignored,
                },
                "input_audio",
            ),
        },
    ),
    MAX_PARTS,
    1,
)
_ASSISTANT_PARTS = items(
    variant("type", {"text": _TEXT_PART, "refusal": shape({"type": KIND, "refusal": text()}, "refusal")}), MAX_PARTS
)

_TOOL_CALL = variant(
    "type",
    {
        "function": shape(
            {
                "id": _NAME,
                "type": KIND,
                "function": shape({"name": text(MAX_NAME, 1), "arguments": text()}, "name", "arguments"),
                "index": ignored,  # left over where a caller has put a stream together again
            },
            "function",
        )
    },
    default="function",
)

_INSTRUCTION = shape({"role": KIND, "content": text_or(_TEXT_PARTS), "name": _NAME}, "content")

_MESSAGE = variant(
    "role",
    {
        "system": _INSTRUCTION,
        "developer": _INSTRUCTION,
        "user": shape({"role": KIND, "content": text_or(_USER_PARTS), "name": _NAME}, "content"),
        "assistant": shape(
            {
                "role": KIND,
                "content": text_or(_ASSISTANT_PARTS),
                "name": _NAME,
                "refusal": text(),
                "tool_calls": unless_empty(items(_TOOL_CALL, "tools")),
                "reasoning": text(),
                "reasoning_content": text(),
                "annotations": ignored,
                "audio": only(),
                "function_call": only(),
            }
        ),
        "tool": shape({"role": KIND, "content": text_or(_USER_PARTS), "tool_call_id": _NAME, "name": _NAME}, "content"),
    },
)

_PLAIN_ROLES = ("user", "system", "assistant", "developer")


def _messages(value: Any, caps: RequestCaps) -> Any:
    """A list of messages. Most are a role and a text: those are looked at without the machinery (0.1 µs for 1.5)."""
    if type(value) is not list or not 1 <= len(value) <= caps.messages:
        raise Refused(f"must be a list of 1 to {caps.messages} messages")
    for at, message in enumerate(value):
        if (
            type(message) is dict
            and len(message) == 2
            and type(message.get("content")) is str
            and message.get("role") in _PLAIN_ROLES
        ):
            continue
        try:
            _MESSAGE(message, caps)
        except Refused as no:
            raise no.under(f"[{at}]") from None
    return value


_TOOL = variant(
    "type",
    {
        "function": shape(
            {
                "type": KIND,
                "function": shape(
                    {"name": text(MAX_NAME, 1), "description": text(), "parameters": schema, "strict": boolean}, "name"
                ),
                "cache_control": ignored,
            },
            "function",
        )
    },
)

CHAT = Table(
    fields={
        **GENERATION,
        **OPENAI_ANNOTATIONS,
        "model": MODEL,
        "messages": _messages,
        "logprobs": boolean,
        "max_completion_tokens": integer(1, "max_tokens"),
        "max_tokens": integer(1, "max_tokens"),
        "modalities": only(["text"]),
        "parallel_tool_calls": boolean,
        "prediction": ignored,  # a hint that may only make the same answer faster
        "reasoning_effort": EFFORT,
        "tool_choice": text_or(
            variant(
                "type",
                {"function": shape({"type": KIND, "function": shape({"name": text(MAX_NAME, 1)}, "name")}, "function")},
            ),
            one_of("none", "auto", "required"),
        ),
        "tools": items(_TOOL, "tools", 1),
        "top_logprobs": integer(0, "logprobs"),
        "verbosity": only("medium"),
        "add_generation_prompt": boolean,
        "chat_template_kwargs": CHAT_TEMPLATE_KWARGS,
        "continue_final_message": boolean,
        "echo": boolean,
        "include_reasoning": boolean,
        "structured_outputs": STRUCTURED_OUTPUTS,
    },
    required=("model", "messages"),
    answer_tokens=("max_completion_tokens", "max_tokens"),
)
