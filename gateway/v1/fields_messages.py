"""The allow-lists of /v1/messages and /v1/messages/count_tokens: Anthropic's fields."""

from __future__ import annotations

from gateway.errors import RemoteMediaDisabled
from gateway.v1.fields import Table
from gateway.v1.fields_rules import (
    base64_data,
    boolean,
    ignored,
    integer,
    items,
    number,
    object_of_any,
    one_of,
    only,
    refused,
    schema,
    shape,
    text,
    text_or,
    variant,
)
from gateway.v1.fields_sampling import CHAT_TEMPLATE_KWARGS, IMAGE_TYPES, KIND, MAX_NAME, MAX_PARTS, MODEL

_NAME = text(MAX_NAME)
_TEXT_BLOCK = shape({"type": KIND, "text": text(), "citations": ignored, "cache_control": ignored}, "text")
_IMAGE_BLOCK = shape(
    {
        "type": KIND,
        "source": variant(
            "type",
            {
                "base64": shape(
                    {"type": KIND, "media_type": one_of(*IMAGE_TYPES), "data": base64_data}, "media_type", "data"
                ),
                "url": refused(
                    "must hold the picture itself (`base64`); this gateway and its engines fetch nothing",
                    RemoteMediaDisabled,
                ),
            },
        ),
        "cache_control": ignored,
    },
    "source",
)
_TEXT_BLOCKS = items(variant("type", {"text": _TEXT_BLOCK}), MAX_PARTS)
_RESULT_BLOCKS = items(variant("type", {"text": _TEXT_BLOCK, "image": _IMAGE_BLOCK}), MAX_PARTS)
_BLOCKS = items(
    variant(
        "type",
        {
            "text": _TEXT_BLOCK,
            "image": _IMAGE_BLOCK,
            "tool_use": shape(
                {
                    "type": KIND,
                    "id": _NAME,
                    "name": text(MAX_NAME, 1),
                    "input": object_of_any,
                    "caller": ignored,
                    "cache_control": ignored,
                },
                "id",
                "name",
                "input",
            ),
            "tool_result": shape(
                {
                    "type": KIND,
                    "tool_use_id": _NAME,
                    "content": text_or(_RESULT_BLOCKS),
                    "is_error": boolean,
                    "cache_control": ignored,
                },
                "tool_use_id",
            ),
            "thinking": shape({"type": KIND, "thinking": text(), "signature": text()}, "thinking"),
            "redacted_thinking": shape({"type": KIND, "data": text()}, "data"),
        },
    ),
    MAX_PARTS,
)
_MESSAGE = variant(
    "role",
    {
        "user": shape({"role": KIND, "content": text_or(_BLOCKS)}, "content"),
        "assistant": shape({"role": KIND, "content": text_or(_BLOCKS)}, "content"),
        "system": shape({"role": KIND, "content": text_or(_TEXT_BLOCKS)}, "content"),
    },
)
_TOOL = variant(
    "type",
    {
        "custom": shape(
            {
                "type": ignored,  # vLLM has no such key
                "name": text(MAX_NAME, 1),
                "description": text(),
                "input_schema": schema,
                "strict": boolean,
                "cache_control": ignored,
                "eager_input_streaming": ignored,
            },
            "name",
            "input_schema",
        )
    },
    default="custom",
)
_TOOL_CHOICE_PLAIN = shape({"type": KIND, "disable_parallel_tool_use": boolean})
_DISPLAY = one_of("summarized", "omitted", "updates")

_PROMPT = {
    "model": MODEL,
    "messages": items(_MESSAGE, "messages", 1),
    "cache_control": ignored,
    "output_config": shape(
        {
            "effort": one_of("low", "medium", "high", "xhigh", "max"),
            "format": variant("type", {"json_schema": shape({"type": KIND, "schema": schema}, "schema")}),
        }
    ),
    "speed": only("standard"),
    "system": text_or(_TEXT_BLOCKS),
    "thinking": variant(
        "type",
        {
            "enabled": shape({"type": KIND, "budget_tokens": integer(1024, "max_tokens"), "display": _DISPLAY}),
            "disabled": shape({"type": KIND}),
            "adaptive": shape({"type": KIND, "display": _DISPLAY}),
        },
    ),
    "tool_choice": variant(
        "type",
        {
            "auto": _TOOL_CHOICE_PLAIN,
            "any": _TOOL_CHOICE_PLAIN,
            "none": shape({"type": KIND}),
            "tool": shape({"type": KIND, "name": text(MAX_NAME, 1), "disable_parallel_tool_use": boolean}, "name"),
        },
    ),
    "tools": items(_TOOL, "tools"),
    "user_profile_id": ignored,
    "workspace_id": ignored,
    "chat_template_kwargs": CHAT_TEMPLATE_KWARGS,
}

MESSAGES = Table(
    fields={
        **_PROMPT,
        "max_tokens": integer(1, "max_tokens"),
        "metadata": ignored,
        "service_tier": ignored,
        "stop_sequences": items(text(1024, 1), "stop"),
        "stream": boolean,
        "temperature": number(0, 2),
        "top_k": integer(-1, 1_000_000),
        "top_p": number(0, 1, above=True),
    },
    required=("model", "messages", "max_tokens"),
    answer_tokens=("max_tokens",),
)

COUNT_TOKENS = Table(fields=_PROMPT, required=("model", "messages"))
