"""What a model says greedily after one prompt: as an engine answers it, as the registry keeps it, whether two agree.

Must not know who said it. None of it is ever shown: a prompt may come from a customer's data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOWEST = -9999.0  # vLLM's own word for the logarithm of nothing, which JSON cannot hold
NOBODY = ("", LOWEST)  # the runner-up where an engine names none
MAX_TEXT = 1024 * 1024  # characters of an encoded reference; eight prompts of 16 tokens are about 10 KB
MAX_UTTERANCES = 64
MAX_TOKENS = 1024


class NoLogprobs(ValueError):
    """A completion without the logprobs that were asked for."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """The greedy continuation of `prompt`. Tokens are opaque: vLLM's `token_id:N`, the end of the turn included."""

    prompt: str = field(repr=False)
    tokens: tuple[str, ...] = field(repr=False)
    logprobs: tuple[float, ...]  # natural logarithms, one per token
    runners_up: tuple[tuple[str, float], ...] = field(repr=False)  # the best of the others at each position


Reference = tuple[Utterance, ...]


def agree(one: Utterance, other: Utterance, tolerance: float, *, whole: bool = True) -> bool:
    """Whether the same weights may have said both. Beyond a near tie the texts may part: it ends the comparison.

    whole: False where one of them may have been cut shorter than the other.
    """
    for at, (mine, theirs) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if mine != theirs:
            return _tie(one, other, at, tolerance)
        if abs(one.logprobs[at] - other.logprobs[at]) > tolerance:
            return False
    return not whole or len(one.tokens) == len(other.tokens)


def _tie(one: Utterance, other: Utterance, at: int, tolerance: float) -> bool:
    """The rounding decided, not the weights: both hesitated, over at least one token that both hold for as likely.

    That each one's choice is the other's runner-up is too much to ask: bfloat16 has few steps, so three or four tokens
    are often equally likely (2 of 405 answers in bfloat16 against float32).
    """
    mine, theirs = (
        {said.tokens[at]: said.logprobs[at], said.runners_up[at][0]: said.runners_up[at][1]} for said in (one, other)
    )
    shared = mine.keys() & theirs.keys()
    hesitated = all(abs(said.logprobs[at] - said.runners_up[at][1]) <= tolerance for said in (one, other))
    return hesitated and bool(shared) and all(abs(mine[token] - theirs[token]) <= tolerance for token in shared)


def encode(reference: Reference) -> str:
    """As text for one column of the registry: plain ASCII, so that any database keeps any script and any token."""
    rows = [
        {
            "prompt": one.prompt,
            "tokens": one.tokens,
            "logprobs": [round(number, 6) for number in one.logprobs],
            "runners_up": [(token, round(number, 6)) for token, number in one.runners_up],
        }
        for one in reference
    ]
    return json.dumps({"utterances": rows}, separators=(",", ":"), allow_nan=False)


def decode(text: str) -> Reference:
    """What `encode` wrote; ValueError for anything else, without a word of it in the message."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"a reference of more than {MAX_TEXT} characters")
    try:
        rows = json.loads(text)["utterances"]
        if type(rows) is not list or len(rows) > MAX_UTTERANCES:
            raise ValueError("no list of utterances")
        return tuple(_decoded(row) for row in rows)
    except (ValueError, TypeError, KeyError, LookupError, OverflowError, RecursionError):
        raise ValueError("this is no reference that was encoded here") from None


def _decoded(row: Any) -> Utterance:
    made = Utterance(
        _text(row["prompt"]),
        tuple(_text(token) for token in _list(row["tokens"])),
        tuple(_number(number) for number in _list(row["logprobs"])),
        tuple((_text(token), _number(number)) for token, number in map(_list, _list(row["runners_up"]))),
    )
    if not made.prompt or not len(made.tokens) == len(made.logprobs) == len(made.runners_up):
        raise ValueError("nothing was asked, or lists of different lengths")
    return made


def read(prompt: str, text: str, most: int) -> Utterance:
    """An engine's answer to a completion of at most `most` tokens; ValueError for anything else, NoLogprobs."""
    try:
        answer = json.loads(text)
        choice = answer["choices"][0]
        found = choice.get("logprobs")
        if found is None:
            if choice["text"] or answer["usage"]["completion_tokens"]:
                raise NoLogprobs
            return Utterance(prompt, (), (), ())
        tokens = tuple(_text(token) for token in _list(found["tokens"]))
        logprobs = tuple(_number(number) for number in _list(found["token_logprobs"]))
        tops = _list(found["top_logprobs"])
        if not len(tokens) == len(logprobs) == len(tops) or len(tokens) > most:
            raise ValueError("lists of different lengths, or more than was asked for")
        seconds = tuple(_runner_up(token, top or {}) for token, top in zip(tokens, tops, strict=True))
        return Utterance(prompt, tokens, logprobs, seconds)
    except NoLogprobs:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        raise ValueError("this is no completion") from None


def _runner_up(chosen: str, top: Mapping[str, Any]) -> tuple[str, float]:
    others = [(_text(token), _number(number)) for token, number in top.items() if token != chosen]
    return max(others, key=lambda other: other[1], default=NOBODY)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("not a text")
    value.encode()  # half of a surrogate pair is a ValueError: it could never be sent
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _list(value: Any) -> list[Any]:
    if type(value) is not list or len(value) > MAX_TOKENS:
        raise ValueError("not a list")
    return value
