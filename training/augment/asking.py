"""One model asked for texts: within a budget of requests, with what it refuses left out, its thoughts taken off.

Must not know what is asked for. What is asked and answered is never logged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.migrate.remote import Remote, RemoteRefused

OF_ONE = frozenset({400, 413, 422})  # it does not take this one request; others it may
_THOUGHTS = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_UNFINISHED = re.compile(r"\A\s*<think(?:ing)?>")


class NotMade(Exception):
    """One text is not to be had, or no good. kind: a word of judging.REASONS; the message is for people."""

    def __init__(self, kind: str, message: str, text: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.text = kind, message, text


class NotNow(Exception):
    """The service failed at this one, after as many tries as it is worth: it may be had later."""

    def __init__(self, error: RemoteRefused) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class Spent:
    """What a run took so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Asker:
    """most_tokens: of one answer; temperature: None for what each text asks for; most_requests: of this run.

    A request that is sent again, because the service was busy or failed, counts once.
    """

    def __init__(
        self,
        remote: Remote,
        model: str,
        *,
        most_tokens: int,
        seed: int,
        temperature: float | None = None,
        most_requests: int | None = None,
    ) -> None:
        self.model = model
        self.spent = Spent()
        self._remote = remote
        self._most_requests, self._promised = most_requests, 0
        self._temperature, self._seed = temperature, seed
        self._length: dict[str, Any] = {"max_completion_tokens": most_tokens}
        self._refused: set[str] = set()  # parameters that the model does not take

    def promise(self, requests: int) -> bool:
        """Whether so many more may be made; if so they are set aside."""
        if self._most_requests is not None and self._promised + requests > self._most_requests:
            return False
        self._promised += requests
        return True

    async def ask(self, instruction: str, text: str, *, temperature: float, place: int) -> str:
        """The model's words. NotMade, NotNow; RemoteRefused where no request would be answered.

        place: which of several texts for the same it is; each has its own seed.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        sampling = {"temperature": self._temperature if self._temperature is not None else temperature}
        self.spent.requests += 1
        document = await self._chat(messages, {**sampling, "seed": self._seed + place})
        return self._read(document)

    async def _chat(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> dict[str, Any]:
        while True:
            wanted = {name: value for name, value in sampling.items() if name not in self._refused}
            body = {"model": self.model, "messages": list(messages), **self._length, **wanted}
            try:
                return await self._remote.post("/chat/completions", body)
            except RemoteRefused as refused:
                if refused.answered == 400 and self._without(refused.param, body):
                    continue
                if refused.answered in OF_ONE:
                    raise NotMade("endpoint", refused.message) from None
                hopeless = refused.answered in (401, 402, 403, 404) or refused.reason == "insufficient_quota"
                if hopeless or not self._remote.met:
                    raise
                raise NotNow(refused) from None

    def _without(self, name: str | None, body: Mapping[str, Any]) -> bool:
        """Leave out a parameter that the model refuses; False where that changes nothing."""
        if name == "max_completion_tokens" and name in body:
            self._length = {"max_tokens": self._length.get(name, body[name])}  # an older service
            return True
        if name not in ("temperature", "seed") or name not in body:
            return False
        self._refused.add(name)
        return True

    def _read(self, document: Mapping[str, Any]) -> str:
        try:
            choice = document["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            text = message.get("content") or ""
            usage = document.get("usage") or {}
            self.spent.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.spent.completion_tokens += int(usage.get("completion_tokens") or 0)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise NotNow(RemoteRefused("The answer is no chat completion. Is this the API's address?")) from None
        if not isinstance(text, str):
            raise NotMade("empty", "The answer is no text.")
        whole = _THOUGHTS.sub("", text)
        if finish == "length" or _UNFINISHED.match(whole):
            raise NotMade("cut_off", "The answer is longer than --max-tokens.", text)
        if finish == "content_filter" or (not whole.strip() and message.get("refusal")):
            raise NotMade("refusal", "The service's filter stopped the answer.", text)
        if not whole.strip():
            raise NotMade("empty", "The answer is empty.", text)
        try:
            whole.encode()
        except UnicodeEncodeError:
            raise NotMade("garbled", "The answer has half of a character in it.") from None
        return whole.strip()
