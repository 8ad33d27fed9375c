"""Prompts put to one model of a service, greedily and a few at once.

Must not know what becomes of the answers. What is asked and answered is never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.migrate.golden import Prompt
from training.migrate.remote import Remote, RemoteRefused

# The reasoning models refuse to be greedy; for them these are left out.
GREEDY: dict[str, Any] = {"temperature": 0, "seed": 0}


@dataclass(frozen=True, slots=True)
class Reply:
    """answer: `content` or `tool_calls`, as the message had them. problem: why there is none."""

    answer: Mapping[str, Any] = field(default_factory=dict, repr=False)
    model: str = ""
    finish: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    problem: str | None = None


class Asker:
    """greedy: false once the model has refused to be. clock: seconds."""

    def __init__(self, remote: Remote, model: str, *, most_tokens: int, clock: Callable[[], float]) -> None:
        self.model = model
        self.greedy = True
        self._remote = remote
        self._most_tokens = most_tokens
        self._clock = clock

    async def ask(self, prompt: Prompt) -> Reply:
        """One answer, or what this one row lacks; RemoteRefused where no row would be answered."""
        began = self._clock()
        try:
            document = await self._chat(prompt)
        except RemoteRefused as refused:
            if refused.answered == 404 or refused.reason == "model_not_found":
                raise RemoteRefused(
                    f"{self._remote.base_url} has no model {self.model} any more (or not for this key): "
                    "nothing can be asked of it.",
                    answered=refused.answered,
                    reason="model_not_found",
                ) from None
            if refused.answered not in (400, 413, 422):  # the key, the quota, or the whole service
                raise
            return Reply(problem=refused.message)
        return _read(document, self._clock() - began)

    async def _chat(self, prompt: Prompt) -> dict[str, Any]:
        try:
            return await self._remote.post("/chat/completions", self._body(prompt))
        except RemoteRefused as refused:
            if not self.greedy or refused.param not in GREEDY:
                raise
        self.greedy = False
        return await self._remote.post("/chat/completions", self._body(prompt))

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(prompt.messages)}
        body["max_completion_tokens"] = self._most_tokens
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        return body | (GREEDY if self.greedy else {})


async def each(
    prompts: Sequence[Prompt],
    work: Callable[[Prompt], Awaitable[None]],
    at_once: int,
    done: Callable[[int, int], None],
) -> None:
    """`work` of every prompt, `at_once` at a time; the first error ends all of it. done: how many of how many."""
    waiting = list(reversed(prompts))
    finished = 0

    async def worker() -> None:
        nonlocal finished
        while waiting:
            await work(waiting.pop())
            finished += 1
            done(finished, len(prompts))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(prompts))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _read(document: Mapping[str, Any], seconds: float) -> Reply:
    try:
        choice = document["choices"][0]
        message = choice["message"]
        answer = {name: message[name] for name in ("content", "tool_calls") if message.get(name)}
        usage = document.get("usage") or {}
        tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Reply(problem="the answer is no chat completion")
    if not answer:
        return Reply(problem="the answer is empty" + (": " + message["refusal"][:80] if message.get("refusal") else ""))
    return Reply(answer, str(document.get("model") or ""), choice.get("finish_reason"), *tokens, seconds)
