"""Examples put to one model through the gateway, greedily and a few at once: what users would be answered.

Must not know right answers or metrics. What is asked and answered is never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from training.evaluate.example import Example, canonical
from training.gatewayclient import Gateway, GatewayRefused, Reply

SHORTEST, LONGEST = 64, 1024
HOPELESS = frozenset({401, 403, 404})  # the key opens nothing, or there is no such model: no row would be answered
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said. served: which version answered; engine: what it says of itself; problem: why it did not."""

    text: str = ""
    finish: str | None = None
    seconds: float = 0.0
    tokens: int = 0
    served: str = ""
    engine: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Manner:
    """How all models are asked. most_tokens: of an answer; kwargs: of the chat template, as the adapter needs them."""

    most_tokens: int
    at_once: int = 8
    kwargs: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        return {
            "temperature": 0,
            "seed": 0,
            "max_tokens": self.most_tokens,
            "at_once": self.at_once,
            "chat_template_kwargs": dict(self.kwargs or {}),
        }


def room_for(examples: Sequence[Example]) -> int:
    """Tokens that the longest right answer cannot exceed by much: a token is a character or more, nearly always."""
    longest = max((len(example.reference) for example in examples), default=0)
    return min(max(longest + 16, SHORTEST), LONGEST)


async def ask(gateway: Gateway, model: str, example: Example, manner: Manner) -> Answer:
    """One answer; a refusal is its `problem`. GatewayAway, and GatewayRefused where no row would be answered."""
    try:
        reply = await gateway.chat(body_of(model, example, manner))
    except GatewayRefused as refused:
        if refused.answered in HOPELESS:
            raise
        return Answer(problem=f"{model} was not answered: {refused.message}")
    return _read(reply, model)


def body_of(model: str, example: Example, manner: Manner) -> dict[str, Any]:
    """The request. Every sampling parameter is said: a model's own generation_config.json may name others."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(example.messages),
        "temperature": 0,
        "seed": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": manner.most_tokens,
    }
    if example.tools:
        body["tools"] = list(example.tools)
    if manner.kwargs:
        body["chat_template_kwargs"] = dict(manner.kwargs)
    return body


async def each(items: Sequence[T], work: Callable[[T], Any], at_once: int, done: Callable[[int], None]) -> list[Any]:
    """`work` of every item, in their order; `done` is told how many. The first error ends all of it."""
    room = asyncio.Semaphore(at_once)
    finished = 0

    async def one(item: T) -> Any:
        nonlocal finished
        async with room:
            made = await work(item)
        finished += 1
        done(finished)
        return made

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _read(reply: Reply, model: str) -> Answer:
    try:
        choice = reply.document["choices"][0]
        message = choice["message"]
        calls = message.get("tool_calls")
        text = canonical(calls) if calls else message.get("content") or ""
        tokens = int((reply.document.get("usage") or {}).get("completion_tokens") or 0)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Answer(problem=f"{model} answered with something that is no chat completion")
    if "@" in model and reply.served != model:
        return Answer(problem=f"{model} was asked, and {reply.served or 'nobody'} answered")
    engine = reply.document.get("system_fingerprint")
    return Answer(text, choice.get("finish_reason"), reply.seconds, tokens, reply.served, engine)
