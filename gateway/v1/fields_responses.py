"""The allow-list of /v1/responses, which is stateless here: nothing is stored, so nothing stored can be named."""

from __future__ import annotations

from gateway.v1.fields import Table
from gateway.v1.fields_rules import (
    base64_data,
    boolean,
    data_url,
    ignored,
    integer,
    items,
    one_of,
    only,
    refused,
    schema,
    shape,
    text,
    text_or,
    variant,
)
from gateway.v1.fields_sampling import (
    AUDIO_FORMATS,
    CHAT_TEMPLATE_KWARGS,
    EFFORT,
    IMAGE_TYPES,
    KIND,
    MAX_NAME,
    MAX_PARTS,
    MODEL,
    OPENAI_ANNOTATIONS,
    SAMPLING,
    STRUCTURED_OUTPUTS,
)

_STATELESS = "is not supported: this gateway stores no responses. Send the whole conversation as `input`"
_NAME = text(MAX_NAME)
_STATUS = one_of("in_progress", "completed", "incomplete")
_INPUT_TEXT = shape({"type": KIND, "text": text(), "prompt_cache_breakpoint": ignored}, "text")
_INPUT_IMAGE = shape(
    {
        "type": KIND,
        "image_url": data_url(*IMAGE_TYPES),
        "detail": one_of("auto", "low", "high", "original"),
        "prompt_cache_breakpoint": ignored,
    },
    "image_url",
)
_INPUT_AUDIO = shape(
    {
        "type": KIND,
        "input_audio": shape({"data": base64_data, "format": one_of(*AUDIO_FORMATS)}, "data", "format"),
    },
    "input_audio",
)
_PARTS = items(
    variant(
        "type",
        {
            "input_text": _INPUT_TEXT,
            "input_image": _INPUT_IMAGE,
            "input_audio": _INPUT_AUDIO,
            "output_text": shape(
                {"type": KIND, "text": text(), "annotations": items(schema, MAX_PARTS), "logprobs": ignored}, "text"
            ),
            "refusal": shape({"type": KIND, "refusal": text()}, "refusal"),
        },
    ),
    MAX_PARTS,
)
_OUTPUT_PARTS = items(variant("type", {"input_text": _INPUT_TEXT, "input_image": _INPUT_IMAGE}), MAX_PARTS)
_REASONING_PART = shape({"type": KIND, "text": text()}, "text")

_ITEM = variant(
    "type",
    {
        "message": shape(
            {
                "type": KIND,
                "role": one_of("user", "system", "developer", "assistant"),
                "content": text_or(_PARTS),
                "id": _NAME,
                "status": _STATUS,
                "phase": ignored,
            },
            "role",
            "content",
        ),
        "function_call": shape(
            {
                "type": KIND,
                "call_id": _NAME,
                "name": text(MAX_NAME, 1),
                "arguments": text(),
                "id": _NAME,
                "status": _STATUS,
            },
            "call_id",
            "name",
            "arguments",
        ),
        "function_call_output": shape(
            {"type": KIND, "call_id": _NAME, "output": text_or(_OUTPUT_PARTS), "id": _NAME, "status": _STATUS},
            "call_id",
            "output",
        ),
        "reasoning": shape(
            {
                "type": KIND,
                "id": _NAME,
                "summary": items(_REASONING_PART, MAX_PARTS),
                "content": items(_REASONING_PART, MAX_PARTS),
                "encrypted_content": text(),
                "status": _STATUS,
            },
            "summary",
        ),
    },
    default="message",
)

_TOOL = variant(
    "type",
    {
        "function": shape(
            {
                "type": KIND,
                "name": text(MAX_NAME, 1),
                "description": text(),
                "parameters": schema,
                "strict": boolean,
            },
            "name",
        )
    },
)
_PLAIN_FORMAT = shape({"type": KIND})
_TEXT = shape(
    {
        "format": variant(
            "type",
            {
                "text": _PLAIN_FORMAT,
                "json_object": _PLAIN_FORMAT,
                "json_schema": shape(
                    {
                        "type": KIND,
                        "name": text(MAX_NAME, 1),
                        "description": text(4096),
                        "schema": schema,
                        "strict": boolean,
                    },
                    "name",
                    "schema",
                ),
            },
        ),
        "verbosity": only("medium"),
    }
)

RESPONSES = Table(
    fields={
        **SAMPLING,
        **OPENAI_ANNOTATIONS,
        "model": MODEL,
        "input": text_or(items(_ITEM, "messages", 1)),
        "background": only(False),
        "conversation": refused(_STATELESS),
        "include": items(one_of("message.output_text.logprobs", "reasoning.encrypted_content"), 2),
        "instructions": text(),
        "max_output_tokens": integer(1, "max_tokens"),
        "parallel_tool_calls": boolean,
        "previous_response_id": refused(_STATELESS),
        "reasoning": shape({"effort": EFFORT, "summary": ignored, "generate_summary": ignored}),
        "stream_options": shape({"include_obfuscation": ignored}),
        "text": _TEXT,
        "tool_choice": text_or(
            variant("type", {"function": shape({"type": KIND, "name": text(MAX_NAME, 1)}, "name")}),
            one_of("none", "auto", "required"),
        ),
        "tools": items(_TOOL, "tools"),
        "top_logprobs": integer(0, "logprobs"),
        "truncation": one_of("auto", "disabled"),
        "chat_template_kwargs": CHAT_TEMPLATE_KWARGS,
        "include_reasoning": boolean,
        "structured_outputs": STRUCTURED_OUTPUTS,
    },
    required=("model", "input"),
    answer_tokens=("max_output_tokens",),
)
