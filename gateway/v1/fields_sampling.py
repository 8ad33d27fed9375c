"""Table rows that several routes share: sampling, output constraints, media types, annotations.

Bounds that come from vLLM 0.32: 1,024 biased tokens, 1,024 allowed tokens, 128 stop tokens and 128 bad words are
what its sampler has room for. Must not know a route.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.v1.fields_rules import (
    INT64,
    MAX_SCHEMA_BYTES,
    MAX_TOKEN_ID,
    Rule,
    boolean,
    ignored,
    integer,
    items,
    logit_bias,
    number,
    one_of,
    only,
    schema,
    shape,
    text,
    text_or,
    token_ids,
    variant,
)

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
AUDIO_FORMATS = ("wav", "mp3")
MAX_PARTS = 1024  # content parts of one message
MAX_NAME = 256  # names, ids: never text for the model

MODEL = text(MAX_NAME, 1)
_STOP = text(1024, 1)
STOP = text_or(items(_STOP, "stop"), _STOP)
KIND = text(64)  # a discriminator that variant() has already looked at
EFFORT = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")

# OpenAI's notes about a request, which change nothing of an answer made here. Accepted and dropped.
OPENAI_ANNOTATIONS: Mapping[str, Rule] = {
    "metadata": ignored,
    "prompt_cache_key": ignored,
    "prompt_cache_options": ignored,
    "prompt_cache_retention": ignored,
    "safety_identifier": ignored,
    "service_tier": ignored,
    "store": ignored,
    "user": ignored,
}

# Sampling fields that chat, completions and responses have in common (OpenAI's, then vLLM's).
SAMPLING: Mapping[str, Rule] = {
    "frequency_penalty": number(-2, 2),
    "logit_bias": logit_bias(1024),
    "presence_penalty": number(-2, 2),
    "seed": integer(-INT64, INT64 - 1),
    "stop": STOP,
    "stream": boolean,
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "ignore_eos": boolean,
    "include_stop_str_in_output": boolean,
    "min_p": number(0, 1),
    "repetition_penalty": number(0, 100, above=True),
    "skip_special_tokens": boolean,
    "stop_token_ids": token_ids(128),
    "top_k": integer(-1, 1_000_000),
}

_PLAIN_FORMAT = shape({"type": KIND}, "type")

# More that chat and completions have in common.
GENERATION: Mapping[str, Rule] = {
    **SAMPLING,
    "n": integer(1, "n"),
    "stream_options": shape(
        {"include_usage": boolean, "continuous_usage_stats": boolean, "include_obfuscation": ignored}
    ),
    "response_format": variant(
        "type",
        {
            "text": _PLAIN_FORMAT,
            "json_object": _PLAIN_FORMAT,
            "json_schema": shape(
                {
                    "type": KIND,
                    "json_schema": shape(
                        {"name": text(MAX_NAME, 1), "description": text(4096), "schema": schema, "strict": boolean},
                        "name",
                        "schema",
                    ),
                },
                "json_schema",
            ),
        },
    ),
    "add_special_tokens": boolean,
    "allowed_token_ids": token_ids(1024, 1),
    "bad_words": items(text(128, 1), 128),
    "best_of": only(1),
    "length_penalty": number(-10, 10),
    "logprob_token_ids": token_ids(128),
    "min_tokens": integer(0, "max_tokens"),
    "prompt_logprobs": integer(0, "logprobs"),
    "return_token_ids": boolean,
    "return_tokens_as_token_ids": boolean,
    "spaces_between_special_tokens": boolean,
    "thinking_token_budget": integer(-1, "max_tokens"),
    "truncate_prompt_tokens": integer(-1, MAX_TOKEN_ID),
    "truncation_side": one_of("left", "right"),
    "use_beam_search": only(False),
}

STRUCTURED_OUTPUTS = shape(
    {
        "json": text_or(schema, text(MAX_SCHEMA_BYTES, 2)),
        "regex": text(1024, 1),
        "choice": items(text(1024, 1), 256, 1),
        "grammar": text(16 * 1024, 1),
        "json_object": boolean,
        "disable_any_whitespace": boolean,
        "disable_additional_properties": boolean,
    }
)

CHAT_TEMPLATE_KWARGS = shape({"enable_thinking": boolean})
