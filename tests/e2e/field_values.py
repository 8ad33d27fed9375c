"""One acceptable value for every field of docs/fields.md, and what must stand beside it: data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.v1.fields import Table
from gateway.v1.fields_chat import CHAT
from gateway.v1.fields_completions import COMPLETIONS
from gateway.v1.fields_messages import COUNT_TOKENS, MESSAGES
from gateway.v1.fields_responses import RESPONSES

Fields = Mapping[str, Any]

MODEL = "customer-service"
QUESTION = "How do I reset my password?"
TURNS = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"enum": ["yes", "no"]}},
    "required": ["sure"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
_ANTHROPIC_TOOL = {"name": "look_up", "input_schema": {"type": "object"}}

TABLES: Mapping[str, Table] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "messages": MESSAGES,
    "messages/count_tokens": COUNT_TOKENS,
}
REQUIRED: Mapping[str, Fields] = {
    "chat/completions": {"model": MODEL, "messages": TURNS, "temperature": 0, "max_tokens": 8},
    "completions": {"model": MODEL, "prompt": "Open Settings", "temperature": 0, "max_tokens": 8},
    "responses": {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 8},
    "messages": {"model": MODEL, "messages": TURNS, "temperature": 0, "max_tokens": 8},
    "messages/count_tokens": {"model": MODEL, "messages": TURNS},
}

_SAMPLING: Fields = {
    "chat_template_kwargs": {"enable_thinking": False},
    "frequency_penalty": 1,
    "ignore_eos": True,
    "include_reasoning": False,
    "include_stop_str_in_output": True,
    "logit_bias": {"5": 10},
    "metadata": {"team": "blue"},
    "min_p": 0.1,
    "parallel_tool_calls": True,
    "presence_penalty": 1,
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "auto"},
    "prompt_cache_retention": "24h",
    "repetition_penalty": 1.2,
    "safety_identifier": "someone",
    "seed": 7,
    "service_tier": "auto",
    "skip_special_tokens": False,
    "stop": ["Reset"],
    "stop_token_ids": [7],
    "store": True,
    "stream": False,
    "structured_outputs": {"choice": ["yes", "no"]},
    "temperature": 0.5,
    "tool_choice": "none",
    "top_k": 5,
    "top_logprobs": 2,
    "top_p": 0.9,
    "user": "someone",
}
_GENERATION: Fields = {
    "add_special_tokens": True,
    "allowed_token_ids": [5, 6, 7],
    "bad_words": ["Settings"],
    "best_of": 1,
    "echo": True,
    "length_penalty": 1.5,
    "logprob_token_ids": [5],
    "max_tokens": 4,
    "min_tokens": 2,
    "n": 2,
    "prompt_logprobs": 1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "sure", "schema": SCHEMA}},
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "spaces_between_special_tokens": False,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False},
    "thinking_token_budget": 16,
    "truncate_prompt_tokens": 10,
    "truncation_side": "left",
    "use_beam_search": False,
}
_PROMPT_OF_MESSAGES: Fields = {
    "cache_control": {"type": "ephemeral"},
    "chat_template_kwargs": {"enable_thinking": False},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "speed": "standard",
    "system": "You are a helpful assistant.",
    "thinking": {"type": "disabled"},
    "tool_choice": {"type": "none"},
    "tools": [_ANTHROPIC_TOOL],
    "user_profile_id": "a",
    "workspace_id": "b",
}
VALUES: Mapping[str, Fields] = {
    "chat/completions": {
        **_SAMPLING,
        **_GENERATION,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "logprobs": True,
        "max_completion_tokens": 4,
        "modalities": ["text"],
        "prediction": {"type": "content", "content": "Open"},
        "reasoning_effort": "low",
        "tools": [_TOOL],
        "verbosity": "medium",
    },
    "completions": {**_SAMPLING, **_GENERATION, "logprobs": 2, "suffix": ""},
    "responses": {
        **_SAMPLING,
        "background": False,
        "include": ["message.output_text.logprobs"],
        "instructions": "You are a helpful assistant.",
        "max_output_tokens": 4,
        "reasoning": {"effort": "low"},
        "stream_options": {"include_obfuscation": False},
        "text": {"format": {"type": "json_schema", "name": "sure", "schema": SCHEMA}, "verbosity": "medium"},
        "tools": [],
        "truncation": "auto",
    },
    "messages": {
        **_PROMPT_OF_MESSAGES,
        "max_tokens": 4,
        "metadata": {"user_id": "someone"},
        "service_tier": "auto",
        "stop_sequences": ["Reset"],
        "stream": False,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
    },
    "messages/count_tokens": _PROMPT_OF_MESSAGES,
}

# What has a meaning only beside something else.
_CHAT_BESIDE: Mapping[str, Fields] = {
    "logprob_token_ids": {"logprobs": True},
    "min_tokens": {"max_tokens": 8},
    "n": {"temperature": 1},
    "return_tokens_as_token_ids": {"logprobs": True},
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [_TOOL]},
    "tools": {"tool_choice": "none"},
    "top_logprobs": {"logprobs": True},
}
_MESSAGES_BESIDE: Mapping[str, Fields] = {
    "tool_choice": {"tools": [_ANTHROPIC_TOOL]},
    "tools": {"tool_choice": {"type": "none"}},
}
BESIDE: Mapping[str, Mapping[str, Fields]] = {
    "chat/completions": _CHAT_BESIDE,
    "completions": {
        **_CHAT_BESIDE,
        "logprob_token_ids": {"logprobs": 1},
        "return_tokens_as_token_ids": {"logprobs": 1},
    },
    "responses": {
        "stream_options": {"stream": True},
        "tool_choice": {},
        "top_logprobs": {"include": ["message.output_text.logprobs"]},
    },
    "messages": _MESSAGES_BESIDE,
    "messages/count_tokens": _MESSAGES_BESIDE,
}
# What this engine refuses, being started without a reasoning parser.
ENGINE_REFUSES = {"thinking_token_budget"}
# Nothing is stored: decided in the table itself.
STATELESS = {"conversation", "previous_response_id"}
REFUSED: Fields = {
    "chat_template": "{{ messages }}",
    "cache_salt": "a",
    "documents": [],
    "guided_json": {},
    "kv_transfer_params": {},
    "logits_processors": [],
    "lora_request": {"name": "a", "path": "/"},
    "mm_processor_kwargs": {},
    "priority": 1,
    "prompt_embeds": "AAAA",
    "request_id": "a",
    "vllm_xargs": {},
}
