"""How likely a model holds the right answer: the mean log-probability of its tokens, through the serving engine.

All models get the same token ids, which the engine's own template and tokenizer made, so their figures differ by the
weights alone. What ends an answer is not counted. Must not know what the figures decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from training.evaluate.asking import Manner
from training.evaluate.example import Example
from training.gatewayclient import Gateway, GatewayRefused


class CannotTell(Exception):
    """Why there is no likelihood; the message is for the report."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the engine sees it: ids, and how many of them at the front are given, not said."""

    ids: tuple[int, ...]
    given: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    """loss: mean negative log-probability of a token, in nats."""

    loss: float
    tokens: int


async def answer_tokens(gateway: Gateway, model: str, example: Example, manner: Manner) -> Tokens:
    """The conversation and its right answer as ids. CannotTell, GatewayAway."""
    if example.calls:
        raise CannotTell("its answer is a tool call, which the template writes in its own way")
    asked = _body(model, example.messages, manner, example)
    said = [*example.messages, {"role": "assistant", "content": example.reference}]
    whole = _body(model, said, manner, example) | {"add_generation_prompt": False, "continue_final_message": True}
    front, ids = await _ids(gateway, asked), await _ids(gateway, whole)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(front, ids, strict=False)))
    # Where question and answer meet, their texts may share a token; more than that is another rendering.
    if len(front) - shared > 2 or shared == 0 or shared >= len(ids):
        raise CannotTell("the chat template renders the conversation differently when its answer is known")
    return Tokens(ids, shared)


async def text_tokens(gateway: Gateway, model: str, text: str) -> Tokens:
    """A plain text as ids; its first token has no likelihood. CannotTell, GatewayAway."""
    body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    document = await _asked(gateway.completions(body))
    ids = _numbers(_choice(document).get("prompt_token_ids"))
    if len(ids) < 2:
        raise CannotTell("it is too short")
    return Tokens(ids, 1)


async def likelihood(gateway: Gateway, model: str, tokens: Tokens) -> Likelihood:
    """Of the tokens that are not given. CannotTell, GatewayAway."""
    body = {
        "model": model,
        "prompt": list(tokens.ids),
        "max_tokens": 1,
        "temperature": 0,
        "add_special_tokens": False,
        "prompt_logprobs": 0,
    }
    document = await _asked(gateway.completions(body))
    found = _choice(document).get("prompt_logprobs")
    if not isinstance(found, list) or len(found) != len(tokens.ids):
        raise CannotTell("the engine gives no logprobs of a prompt")
    try:
        values = [
            float(found[at][str(tokens.ids[at])]["logprob"]) for at in range(max(tokens.given, 1), len(tokens.ids))
        ]
    except (KeyError, TypeError, ValueError):
        raise CannotTell("the engine's logprobs of a prompt cannot be read") from None
    if not values:
        raise CannotTell("it has no tokens of its own")
    return Likelihood(-sum(values) / len(values), len(values))


def _body(model: str, messages: Sequence[Mapping[str, Any]], manner: Manner, example: Example) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": list(messages), "max_tokens": 1, "temperature": 0}
    body["return_token_ids"] = True
    if example.tools:
        body |= {"tools": list(example.tools), "tool_choice": "none"}
    if manner.kwargs:
        body["chat_template_kwargs"] = dict(manner.kwargs)
    return body


async def _ids(gateway: Gateway, body: Mapping[str, Any]) -> tuple[int, ...]:
    return _numbers((await _asked(gateway.chat(body))).get("prompt_token_ids"))


async def _asked(reply: Any) -> Mapping[str, Any]:
    try:
        document: Mapping[str, Any] = (await reply).document
    except GatewayRefused as refused:
        raise CannotTell(refused.message) from None
    return document


def _choice(document: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = document["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise CannotTell("the engine answered with something that is no completion") from None
    return found


def _numbers(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(isinstance(each, int) for each in found):
        raise CannotTell("the engine does not say which tokens a prompt has")
    return tuple(found)
