"""The allow-lists: what never gets through, what is bounded, and what the gateway reads from a request."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from gateway.errors import UnsupportedParameter
from gateway.v1.dialect import BY_PATH
from gateway.v1.fields import Checked, check
from gateway.v1.fields_rules import MAX_SCHEMA_BYTES
from tests.gateway.v1.asking import (
    CAPS,
    CHAT,
    COMPLETIONS,
    COUNT,
    EMBEDDINGS,
    MESSAGES,
    MINIMAL,
    RESPONSES,
    USER,
    every_route,
    refusal,
    run,
    sent,
)


@every_route
def test_the_least_request(path: str) -> None:
    checked = run(path)
    assert checked == Checked("m", False, False, False, 1, MINIMAL[path].get("max_tokens"), MINIMAL[path])


@every_route
def test_what_is_required(path: str) -> None:
    for name in MINIMAL[path]:
        body = {key: value for key, value in MINIMAL[path].items() if key != name}
        with pytest.raises(InvalidRequest) as caught:
            check(BY_PATH[path].fields, copy.deepcopy(body), CAPS)
        assert (caught.value.param, caught.value.code) == (name, "invalid_value")
        assert refusal(path, **{name: None}).param == name


# What never gets through -----------------------------------------------------------------------------------

DANGEROUS: dict[str, Any] = {
    "api_base": "http://evil", "api_key": "x", "base_url": "http://evil", "cache_salt": "salt",
    "chat_template": "{{ cycler }}", "custom_llm_provider": "x", "data_parallel_rank": 1,
    "documents": [{"text": "x"}], "ec_transfer_params": {"a": 1}, "enable_response_messages": True,
    "extra_body": {"chat_template": "x"}, "guided_choice": ["a"], "guided_decoding_backend": "x",
    "guided_grammar": "x", "guided_json": {}, "guided_regex": "x", "guided_whitespace_pattern": "x",
    "kv_transfer_params": {"do_remote_decode": True}, "logits_processors": ["os.system"], "lora_path": "/x",
    "lora_request": {"lora_path": "/x"}, "media_io_kwargs": {"image": {}}, "mm_payload": "tensors",
    "mm_processor_kwargs": {"num_crops": 999}, "previous_input_messages": [{}], "priority": -1,
    "prompt_embeds": "AAAA", "prompt_logprob_token_ids": [[1]], "request_id": "same", "return_mm_kwargs": True,
    "return_prompt_text": True, "return_token_offsets": True, "routed_experts_prompt_start": 1,
    "session_id": "x", "stream_interval": 5, "vllm_xargs": {"x": 1}, "watermarking": True, "messages2": [],
    "Model": "other", "": 1, "repetition_detection": {"max_pattern_size": 9},
}  # fmt: skip


@every_route
@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_fields_are_refused(path: str, name: str) -> None:
    for value in (DANGEROUS[name], None):
        error = refusal(path, **{name: value})
        assert type(error) is UnsupportedParameter
        assert error.code == "unsupported_parameter"
        assert error.status == 400
        assert name == "" or error.param == name


@pytest.mark.parametrize(
    ("path", "name", "value", "param"),
    [
        (CHAT, "chat_template_kwargs", {"enable_thinking": True, "evil": 1}, "chat_template_kwargs.evil"),
        (RESPONSES, "chat_template_kwargs", {"add_generation_prompt": 1}, "chat_template_kwargs.add_generation_prompt"),
        (CHAT, "structured_outputs", {"structural_tag": "{}"}, "structured_outputs.structural_tag"),
        (CHAT, "structured_outputs", {"whitespace_pattern": "x"}, "structured_outputs.whitespace_pattern"),
        (CHAT, "structured_outputs", {"_backend": "x"}, "structured_outputs._backend"),
        (CHAT, "response_format", {"type": "structural_tag", "format": {}}, "response_format.type"),
        (CHAT, "tools", [{"type": "custom", "custom": {"name": "x"}}], "tools[0].type"),
        (CHAT, "functions", [{"name": "x"}], "functions"),
        (CHAT, "function_call", "auto", "function_call"),
        (CHAT, "web_search_options", {}, "web_search_options"),
        (CHAT, "audio", {"voice": "x"}, "audio"),
        (CHAT, "modalities", ["text", "audio"], "modalities"),
        (CHAT, "use_beam_search", True, "use_beam_search"),
        (CHAT, "best_of", 2, "best_of"),
        (COMPLETIONS, "best_of", True, "best_of"),
        (COMPLETIONS, "suffix", "x", "suffix"),
        (CHAT, "messages", [{"role": "function", "name": "x", "content": "y"}], "messages[0].role"),
        (CHAT, "messages", [USER, {**USER, "task": "x"}], "messages[1].task"),
        (CHAT, "messages", [{"role": "developer", "content": "x", "tools": []}], "messages[0].tools"),
        (RESPONSES, "previous_response_id", "resp_1", "previous_response_id"),
        (RESPONSES, "conversation", "conv_1", "conversation"),
        (RESPONSES, "background", True, "background"),
        (RESPONSES, "prompt", {"id": "x"}, "prompt"),
        (RESPONSES, "tools", [{"type": "web_search"}], "tools[0].type"),
        (RESPONSES, "tools", [{"type": "mcp", "server_url": "http://x"}], "tools[0].type"),
        (RESPONSES, "tools", [{"type": "code_interpreter", "container": {"type": "auto"}}], "tools[0].type"),
        (RESPONSES, "input", [{"type": "item_reference", "id": "x"}], "input[0].type"),
        (RESPONSES, "input", [{"type": "mcp_call", "id": "x"}], "input[0].type"),
        (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}],
         "input[0].content[0].type"),
        (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}],
         "input[0].content[0].file_id"),
        (MESSAGES, "tools", [{"type": "bash_20250124", "name": "bash"}], "tools[0].type"),
        (MESSAGES, "messages", [{"role": "user", "content": [{"type": "document"}]}], "messages[0].content[0].type"),
        (MESSAGES, "mcp_servers", [{"url": "http://x"}], "mcp_servers"),
        (MESSAGES, "container", "x", "container"),
        (MESSAGES, "speed", "fast", "speed"),
        (COUNT, "max_tokens", 8, "max_tokens"),
        (EMBEDDINGS, "stream", True, "stream"),
        (EMBEDDINGS, "messages", [USER], "messages"),
    ],
)  # fmt: skip
def test_what_is_not_served(path: str, name: str, value: Any, param: str) -> None:
    error = refusal(path, **{name: value})
    assert type(error) is UnsupportedParameter
    assert error.param == param


ANNOTATIONS = {
    CHAT: ("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
           "service_tier", "store", "user", "prediction"),
    COMPLETIONS: ("user",),
    EMBEDDINGS: ("user",),
    RESPONSES: ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "user"),
    MESSAGES: ("metadata", "service_tier", "cache_control", "user_profile_id", "workspace_id"),
    COUNT: ("cache_control",),
}  # fmt: skip


@every_route
def test_annotations_are_accepted_and_dropped(path: str) -> None:
    for name in ANNOTATIONS[path]:
        for value in ("x", {"a": "b"}, True, None):
            assert name not in sent(path, **{name: value})


def test_responses_are_never_stored() -> None:
    assert sent(RESPONSES, store=True)["store"] is False
    assert sent(RESPONSES)["store"] is False


def test_annotations_inside() -> None:
    marked = {"cache_control": {"type": "ephemeral"}}
    part = {"type": "text", "text": "x", **marked}
    bare = {"type": "text", "text": "x"}
    assert sent(CHAT, messages=[{"role": "user", "content": [part]}])["messages"][0]["content"] == [bare]
    body = sent(
        MESSAGES,
        system=[dict(part, citations=None)],
        tools=[{"name": "f", "input_schema": {}, "type": "custom", **marked}],
        messages=[{"role": "user", "content": [dict(part)]}],
    )
    assert body["system"] == body["messages"][0]["content"] == [bare]
    assert body["tools"] == [{"name": "f", "input_schema": {}}]


def test_null_is_the_same_as_absent() -> None:
    for path in MINIMAL:
        optional = set(BY_PATH[path].fields.fields) - set(MINIMAL[path])
        assert sent(path, **dict.fromkeys(optional)) == sent(path)


# Bounds ----------------------------------------------------------------------------------------------------

INTEGERS = [
    (CHAT, "n", 1, CAPS.n), (CHAT, "max_tokens", 1, CAPS.max_tokens),
    (CHAT, "max_completion_tokens", 1, CAPS.max_tokens),
    (CHAT, "min_tokens", 0, CAPS.max_tokens), (CHAT, "seed", -(2**63), 2**63 - 1), (CHAT, "top_k", -1, 1_000_000),
    (CHAT, "top_logprobs", 0, CAPS.logprobs), (CHAT, "prompt_logprobs", 0, CAPS.logprobs),
    (CHAT, "truncate_prompt_tokens", -1, 2**31 - 1), (COMPLETIONS, "n", 1, CAPS.n),
    (COMPLETIONS, "max_tokens", 0, CAPS.max_tokens), (COMPLETIONS, "logprobs", 0, CAPS.logprobs),
    (EMBEDDINGS, "dimensions", 1, 65_536), (RESPONSES, "max_output_tokens", 1, CAPS.max_tokens),
    (RESPONSES, "top_logprobs", 0, CAPS.logprobs), (MESSAGES, "max_tokens", 1, CAPS.max_tokens),
    (MESSAGES, "top_k", -1, 1_000_000),
]  # fmt: skip


@pytest.mark.parametrize(("path", "name", "low", "high"), INTEGERS)
def test_integers_at_their_bounds(path: str, name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert sent(path, **{name: value})[name] == value
    wrong: Any
    for wrong in (low - 1, high + 1, True, 1.0, "1", [1], {}, 2**64 - 1, -(2**63) - 1):
        error = refusal(path, **{name: wrong})
        assert (error.code, error.param) == ("invalid_value", name)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_integer_is_in_bounds_or_refused(data: st.DataObject) -> None:
    path, name, low, high = data.draw(st.sampled_from(INTEGERS))
    value = data.draw(st.integers(-(2**64), 2**64) | st.booleans() | st.floats(allow_nan=False))
    if type(value) is int and low <= value <= high:
        checked = run(path, **{name: value})
        assert checked.body[name] == value
        assert checked.n * (checked.max_tokens or 1) > 0
    else:
        refusal(path, **{name: value})


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("temperature", [0, 0.5, 2], [-0.1, 2.1, True, "1", None.__class__]),
        ("top_p", [0.01, 1], [0, 0.0, 1.1, -1]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
        ("repetition_penalty", [0.1, 100], [0, -1, 101]),
        ("stop", ["a", ["a", "b"], [], ["a"] * CAPS.stop],
         ["", [""], ["a"] * (CAPS.stop + 1), [1], 5, {"a": 1}, "a" * 2000]),
        ("logit_bias", [{}, {"5": -100, "6": 1.5}], [{"5": 101}, {"x": 1}, {"5": True}, {"-1": 1}, [], {"\u0665": 1},
                                                    {str(i): 1 for i in range(1025)}]),
        ("stop_token_ids", [[], [0, 2**31 - 1]], [[-1], [2**31], [True], [1.0], ["1"], [1] * 129, 5]),
        ("allowed_token_ids", [[1]], [[], [1] * 1025]),
        ("bad_words", [["a"]], [[""], ["a"] * 129, "a"]),
        ("stream", [True, False], [1, "true", 0]),
        ("ignore_eos", [True], [1]),
        ("reasoning_effort", ["none", "high", "max"], ["enormous", 1]),
        ("tool_choice", ["auto", {"type": "function", "function": {"name": "f"}}],
         ["other", {"type": "function"}, {"type": "allowed_tools"}, 1]),
        ("tools", [[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}]],
         [[], {}, [1], [{"function": {"name": "f"}}], [{"type": "function", "function": {"name": ""}}],
          [{"type": "function", "function": {"name": "f"}}] * (CAPS.tools + 1),
          [{"type": "function", "function": {"name": "f", "parameters": {"a": "x" * MAX_SCHEMA_BYTES}}}]]),
        ("response_format", [{"type": "text"}, {"type": "json_object"},
                             {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}],
         ["json_object", {}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}},
          {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "x" * MAX_SCHEMA_BYTES}}}]),
        ("structured_outputs", [{"json": {"type": "object"}}, {"choice": ["a", "b"]}, {"regex": "a+"}],
         [{"regex": "a" * 1025}, {"choice": []}, {"grammar": "a" * 20_000}, {"json": {"a": "x" * MAX_SCHEMA_BYTES}},
          []]),
        ("chat_template_kwargs", [{}, {"enable_thinking": False}], [{"enable_thinking": 1}, "x"]),
        ("messages", [[USER] * CAPS.messages],
         [[], [USER] * (CAPS.messages + 1), "x", {}, [1], [{}], [{"role": "user"}], [{"content": "x"}],
          [{"role": "user", "content": 5}], [{"role": ["user"], "content": "x"}], [{"role": "user", "content": []}],
          [{"role": "user", "content": None}]]),
        ("model", ["m", "ft:a:b::c"], ["", 5, "m" * 300, ["m"]]),
    ],
)  # fmt: skip
def test_chat_bounds(name: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        expected = "engine" if name == "model" else value
        assert sent(CHAT, **{name: copy.deepcopy(value)})[name] == expected
    for value in outside:
        assert refusal(CHAT, **{name: copy.deepcopy(value)}).param is not None


@pytest.mark.parametrize(
    ("path", "name", "inside", "outside"),
    [
        (COMPLETIONS, "prompt", ["", "x", ["x", "y"], [1, 2], [[1], [2, 3]]],
         [[], 5, {}, ["x", 1], [1, "x"], [[1], []], [[1], ["x"]], [-1], [2**31], [True], [1, True], [None],
          ["x"] * 257]),
        (EMBEDDINGS, "input", ["x", ["x"] * 2048, [1], [[1]]], [[], ["x"] * 2049, [USER], [[]], {"a": 1}]),
    ],
)  # fmt: skip
def test_prompts(path: str, name: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        assert sent(path, **{name: value})[name] == value
    for value in outside:
        refusal(path, **{name: value})


# What the gateway reads from a request ---------------------------------------------------------------------


def test_answers_asked_for() -> None:
    assert run(CHAT, n=3).n == 3
    assert run(COMPLETIONS, prompt=["a", "b"], n=3).n == 6
    assert run(COMPLETIONS, prompt=[1, 2, 3], n=3).n == 3
    assert run(COMPLETIONS, prompt=[[1], [2]]).n == 2
    assert refusal(COMPLETIONS, prompt=["a"] * 200, n=2).param == "prompt"


def test_longest_answer() -> None:
    assert run(CHAT).max_tokens is None
    assert run(CHAT, max_tokens=5).max_tokens == 5
    assert run(CHAT, max_tokens=5, max_completion_tokens=9).max_tokens == 9
    assert run(RESPONSES, max_output_tokens=7).max_tokens == 7


def test_usage_asked_for() -> None:
    def wants(**options: Any) -> tuple[bool, bool]:
        checked = run(CHAT, stream=True, stream_options=options)
        assert "stream_options" not in checked.body
        return checked.wants_usage, checked.wants_continuous_usage

    assert wants() == (False, False)
    assert wants(include_usage=True, include_obfuscation=False) == (True, False)
    assert wants(include_usage=True, continuous_usage_stats=True) == (True, True)
    assert wants(continuous_usage_stats=True) == (False, False)
    assert refusal(CHAT, stream_options={"include_usage": True}).param == "stream_options"
    assert refusal(CHAT, stream=True, stream_options={"other": 1}).param == "stream_options.other"
    assert refusal(CHAT, stream=True, stream_options={"include_usage": 1}).param == "stream_options.include_usage"


# Conversations as the official SDKs send them ---------------------------------------------------------------


def test_an_answer_is_sent_back_as_it_came() -> None:
    """An assistant message of vLLM's, with all its nulls, and the tool's result after it."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None,
              "function_call": None, "tool_calls": [call], "reasoning": None}  # fmt: skip
    plain = {**answer, "content": "hi", "tool_calls": []}
    result = {"role": "tool", "tool_call_id": "c1", "content": "5"}
    assert sent(CHAT, messages=[USER, answer, result, plain, USER])["messages"] == [
        USER, {"role": "assistant", "tool_calls": [call]}, result, {"role": "assistant", "content": "hi"}, USER,
    ]  # fmt: skip


def test_a_stateless_responses_conversation() -> None:
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "5"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "5", "annotations": []}]},
    ]  # fmt: skip
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    body = sent(RESPONSES, input=copy.deepcopy(turns), tools=[tool], include=["reasoning.encrypted_content"],
                reasoning={"effort": "low", "summary": "auto"},
                text={"format": {"type": "text"}, "verbosity": "medium"})  # fmt: skip
    assert body["input"] == turns
    assert body["tools"] == [tool]
    assert body["reasoning"] == {"effort": "low"}
    assert body["text"] == {"format": {"type": "text"}}


def test_an_anthropic_conversation() -> None:
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "y"},
                                          {"type": "tool_use", "id": "t1", "name": "f", "input": {"usage": {}}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "5", "is_error": False}]},
    ]  # fmt: skip
    body = sent(MESSAGES, messages=copy.deepcopy(turns), thinking={"type": "enabled", "budget_tokens": 1024},
                tool_choice={"type": "tool", "name": "f"}, stop_sequences=["x"], top_k=5)  # fmt: skip
    assert body["messages"] == turns
    assert sent(COUNT, messages=copy.deepcopy(turns), system="x")["messages"] == turns
