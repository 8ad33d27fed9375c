"""Callers without a pause over all adapters, through the official SDK; every answer is held against the truth.

Few names get most requests (Zipf), as it is in life. Must not know what the operator does meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import openai

from tests.e2e import fleet_adapters
from tests.e2e.fleet_truth import Truth

BASE = "demo-base"
BASE_SHARE = 0.08
EXACT_SHARE = 0.05  # of those for an adapter: `name@version` instead of `name`
USERS = 40
MAX_TOKENS = 20
BACK_OFF_S = 0.2  # after a failure: who is refused at once would otherwise ask a thousand times a second


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `version`: asked for by its number, None for the name alone."""

    name: str
    version: int | None
    prompt: str
    chat: bool
    stream: bool
    user: str


@dataclass(frozen=True, slots=True)
class Answered:
    """One request and what became of it; times of the truth's clock. `answered_by`: what the header says."""

    asked: Asked
    began: float
    admitted: float
    ended: float
    answered_by: str = ""
    model: str = ""
    text: str = ""
    error: str = ""


@dataclass
class Ledger:
    """All that was asked, and what was wrong with it."""

    truth: Truth
    numbers: dict[str, dict[str, int]]  # public name → 12 hex digits → number of the version
    base_says: dict[tuple[str, bool], str]  # (prompt, chat) → the base's own answer
    answers: list[Answered] = field(default_factory=list)
    wrong: list[tuple[str, Answered]] = field(default_factory=list)
    failed: list[Answered] = field(default_factory=list)
    by_user: defaultdict[tuple[str, str], list[tuple[float, float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def keep(self, answer: Answered) -> None:
        self.answers.append(answer)
        if answer.error:
            self.failed.append(answer)
        elif reason := self._wrong(answer):
            self.wrong.append((reason, answer))

    def _wrong(self, answer: Answered) -> str:
        """What is wrong with it, "" where nothing is."""
        asked = answer.asked
        if asked.name == BASE:
            right = self.base_says[asked.prompt, asked.chat]
            return "" if (answer.answered_by, answer.text) == (BASE, right) else f"the base says {right!r}"
        found = re.fullmatch(rf"{re.escape(asked.name)}@([0-9a-f]{{12}})", answer.answered_by)
        number = self.numbers[asked.name].get(found[1]) if found else None
        if number is None:
            return "the header names no version of it"
        if answer.model != answer.answered_by:
            return f"the field `model` says {answer.model}"
        if answer.text != fleet_adapters.answer(asked.name, number):
            return f"the text is not that of version {number}"
        if asked.version is not None:
            return "" if number == asked.version else f"version {asked.version} was asked for"
        self.by_user[asked.name, asked.user].append((answer.began, answer.admitted, number))
        allowed = self.truth.allowed(asked.name, answer.began, answer.admitted)
        return "" if number in allowed else f"version {number} answers, allowed {sorted(allowed)}"

    def shares(self, name: str, start: float, end: float) -> tuple[list[str], float]:
        """Between two times: users who saw more than one version of `name`, and the share of users who saw only 2."""
        seen = {
            user: {number for began, admitted, number in rows if began >= start and admitted <= end}
            for (of, user), rows in self.by_user.items()
            if of == name
        }
        known = [versions for versions in seen.values() if versions]
        mixed = [user for user, versions in seen.items() if len(versions) > 1]
        return mixed, sum(versions == {2} for versions in known) / max(len(known), 1)


class Callers:
    """`count` callers until they are stopped."""

    def __init__(self, client: openai.AsyncOpenAI, ledger: Ledger, clock: Callable[[], float], seed: int) -> None:
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._chance = random.Random(seed)
        self._names = fleet_adapters.names()
        self._weights = [1 / rank for rank in range(1, len(self._names) + 1)]
        self._prompts: Sequence[str] = fleet_adapters.prompts()
        self._stopped = asyncio.Event()

    @asynccontextmanager
    async def running(self, count: int) -> AsyncIterator[Callers]:
        tasks = [asyncio.create_task(self._one()) for _ in range(count)]
        try:
            yield self
        finally:
            self._stopped.set()
            await asyncio.gather(*tasks)

    async def every_user(self, name: str, at_once: int = 4) -> None:
        """Each of the users asks `name` twice: how many have which version is then no matter of who came by."""
        room = asyncio.Semaphore(at_once)

        async def one(user: int, number: int) -> None:
            prompt = self._prompts[user % len(self._prompts)]
            async with room:
                asked = Asked(name, None, prompt, chat=True, stream=bool(number), user=f"user-{user}")
                self._ledger.keep(await self.ask(asked))

        await asyncio.gather(*(one(user, number) for user in range(USERS) for number in range(2)))

    async def _one(self) -> None:
        while not self._stopped.is_set():
            answer = await self.ask(self._draw())
            self._ledger.keep(answer)
            if answer.error:
                await asyncio.sleep(BACK_OFF_S)

    def _draw(self) -> Asked:
        chance = self._chance
        is_base = chance.random() < BASE_SHARE
        name = BASE if is_base else chance.choices(self._names, self._weights)[0]
        exact = not is_base and chance.random() < EXACT_SHARE
        return Asked(
            name,
            chance.choice(sorted(self._ledger.numbers[name].values())) if exact else None,
            chance.choice(self._prompts),
            chat=chance.random() < 0.7,
            stream=chance.random() < 0.5,
            user=f"user-{chance.randrange(USERS)}",
        )

    async def ask(self, asked: Asked) -> Answered:
        """Send it and read all of the answer."""
        model = asked.name
        if asked.version is not None:
            digits = {number: digits for digits, number in self._ledger.numbers[asked.name].items()}
            model = f"{asked.name}@{digits[asked.version]}"
        began = self._clock()
        admitted = began
        try:
            header, shown, text, admitted = await (self._chat if asked.chat else self._completion)(asked, model)
        except (openai.OpenAIError, AssertionError) as exc:
            ended = self._clock()
            said = f"{type(exc).__name__}: {exc}"
            if not str(exc).strip(".") or isinstance(exc, openai.APIConnectionError):
                said += f" ({exc.__cause__!r})"
            return Answered(asked, began, max(admitted, ended), ended, error=said[:400])
        return Answered(asked, began, admitted, self._clock(), header, shown, text)

    async def _chat(self, asked: Asked, model: str) -> tuple[str, str, str, float]:
        create = self._client.chat.completions.with_raw_response.create
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": asked.prompt}]
        if not asked.stream:
            raw = await create(
                model=model, messages=messages, temperature=0, max_tokens=MAX_TOKENS, user=asked.user, stream=False
            )
            admitted, whole = self._clock(), raw.parse()
            return raw.headers["x-loragate-model"], whole.model, whole.choices[0].message.content or "", admitted
        answer = await create(
            model=model, messages=messages, temperature=0, max_tokens=MAX_TOKENS, user=asked.user, stream=True
        )
        admitted, text, shown, ended = self._clock(), "", set(), None
        async for chunk in answer.parse():
            shown.add(chunk.model)
            text += chunk.choices[0].delta.content or ""
            ended = chunk.choices[0].finish_reason or ended
        assert ended in ("stop", "length"), f"the stream ended quietly after {text!r}"
        return answer.headers["x-loragate-model"], ",".join(sorted(shown)), text, admitted

    async def _completion(self, asked: Asked, model: str) -> tuple[str, str, str, float]:
        create = self._client.completions.with_raw_response.create
        prompt = asked.prompt + "\n"
        if not asked.stream:
            raw = await create(
                model=model, prompt=prompt, temperature=0, max_tokens=MAX_TOKENS, user=asked.user, stream=False
            )
            admitted, whole = self._clock(), raw.parse()
            return raw.headers["x-loragate-model"], whole.model, whole.choices[0].text, admitted
        answer = await create(
            model=model, prompt=prompt, temperature=0, max_tokens=MAX_TOKENS, user=asked.user, stream=True
        )
        admitted, text, shown, ended = self._clock(), "", set(), None
        async for chunk in answer.parse():
            shown.add(chunk.model)
            text += chunk.choices[0].text
            ended = chunk.choices[0].finish_reason or ended
        assert ended in ("stop", "length"), f"the stream ended quietly after {text!r}"
        return answer.headers["x-loragate-model"], ",".join(sorted(shown)), text, admitted
