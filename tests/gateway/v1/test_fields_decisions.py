"""Every field of the official SDKs is decided on and documented, and no error repeats what a caller sent."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from adapters.errors import InvalidRequest
from gateway.v1.dialect import BY_PATH
from tests.gateway.v1.asking import (
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
)

REFUSED = {
    CHAT: {"audio", "function_call", "functions", "moderation", "web_search_options"},
    COMPLETIONS: set(),
    EMBEDDINGS: set(),
    RESPONSES: {"access_programs", "background_options", "context_management", "image", "max_tool_calls", "moderation",
                "prompt"},
    MESSAGES: {"container", "diagnostics", "inference_geo"},
    COUNT: set(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "params"),
    [(CHAT, ChatParams), (COMPLETIONS, CompletionCreateParamsBase), (EMBEDDINGS, EmbeddingCreateParams),
     (RESPONSES, ResponseCreateParamsBase), (MESSAGES, MessageCreateParamsBase), (COUNT, MessageCountTokensParams)],
)  # fmt: skip
def test_no_sdk_field_was_forgotten(path: str, params: type) -> None:
    known = set(BY_PATH[path].fields.fields)
    names = set(get_type_hints(params)) if params is EmbeddingCreateParams else set(params.__annotations__)
    assert len(names) >= 5
    assert names - known == REFUSED[path]


def test_the_documentation_names_every_field() -> None:
    text = (Path(__file__).parents[3] / "docs" / "fields.md").read_text(encoding="utf-8")
    sections = {section.split("\n")[0].strip(): section for section in text.split("\n## ")}
    for path, dialect in BY_PATH.items():
        missing = {name for name in dialect.fields.fields if f"`{name}`" not in sections[f"POST {path}"]}
        assert missing == set(), path
        for name in REFUSED[path]:
            assert f"`{name}`" in sections["Refused"], name


# No value of a caller's in an error -------------------------------------------------------------------------

CANARY = "canary 7f3a"  # with a space: a field of that name is not shown either


def poisoned(value: Any) -> Iterator[Any]:
    """`value` with each of its parts, in turn, replaced by something wrong that carries the canary."""
    yield from (CANARY, [CANARY], {CANARY: CANARY}, {"type": CANARY}, {"type": "text", "text": {CANARY: 1}})
    if isinstance(value, dict):
        for key in value:
            for inner in poisoned(value[key]):
                yield {**value, key: inner}
        yield {**value, CANARY: 1}
    if isinstance(value, list):
        for at in range(len(value)):
            for inner in poisoned(value[at]):
                yield [*value[:at], inner, *value[at + 1 :]]


@every_route
def test_errors_repeat_no_value(path: str) -> None:
    said: list[str] = []
    for name in BY_PATH[path].fields.fields:
        for value in poisoned(MINIMAL[path].get(name)):
            try:
                run(path, **{name: copy.deepcopy(value)})
            except InvalidRequest as error:
                said.append(f"{name}: {error.message} {error.param}")
    assert len(said) > 10
    assert [line for line in said if CANARY in line] == []


def test_strange_field_names_are_not_shown() -> None:
    for name in (f"{CANARY} a b", "canary" * 20, f"{CANARY}\n", f"<{CANARY}>"):
        for error in (refusal(CHAT, **{name: 1}), refusal(CHAT, messages=[{**USER, name: 1}])):
            assert "canary" not in error.message
            assert "canary" not in str(error.param)
