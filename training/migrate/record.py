"""Golden answers: what the old model says, kept while it still says anything. A run that ends early goes on later.

Must not know HTTP or what the answers are for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adapters.errors import InvalidRequest, StorageFull
from training.migrate.asking import Asker, each
from training.migrate.golden import Prompt, golden_line, golden_of, text_of

BYTES_A_TOKEN = 4.0  # English; a guess is all that can be had without the service's tokenizer
USUAL_ANSWER = 200  # tokens, where the file does not say what is expected
USUAL_SECONDS = 2.0  # an answer takes


@dataclass(frozen=True, slots=True)
class Estimate:
    """Before anything is spent. dollars: None where no prices were given."""

    rows: int
    recorded: int  # are there already
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    dollars: float | None

    def sentence(self) -> str:
        money = f", about ${self.dollars:.2f}" if self.dollars is not None else ""
        there = f" ({self.recorded} are recorded already)" if self.recorded else ""
        return (
            f"{self.rows} answers to record{there}: about {self.prompt_tokens:,} tokens of prompts and "
            f"{self.answer_tokens:,} of answers, {_minutes(self.seconds)}{money}."
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that the service would not answer."""

    row: int
    why: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a golden file has now. greedy: false where the model refuses temperature 0."""

    file: str
    model: str
    rows: int
    fresh: int
    prompt_tokens: int
    completion_tokens: int
    greedy: bool
    failed: tuple[Failure, ...]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    prompts: Sequence[Prompt],
    recorded: int,
    *,
    at_once: int,
    most_tokens: int,
    dollars_in: float | None = None,
    dollars_out: float | None = None,
) -> Estimate:
    """What it takes to record `prompts`. dollars_in, dollars_out: for a million tokens."""
    asked = sum(_tokens(str(message.get("content") or "")) + 4 for p in prompts for message in p.messages)
    answers = sum(min(_tokens(text_of(p.expected)) if p.expected else USUAL_ANSWER, most_tokens) for p in prompts)
    dollars = None
    if dollars_in is not None and dollars_out is not None:
        dollars = (asked * dollars_in + answers * dollars_out) / 1e6
    return Estimate(len(prompts), recorded, asked, answers, len(prompts) * USUAL_SECONDS / at_once, dollars)


def remaining(prompts: Sequence[Prompt], model: str, to: Path) -> tuple[Prompt, ...]:
    """Those that `to` has no answer for; InvalidRequest where its answers are another model's.

    Half a line at its end, which is what a crash leaves, is cut off.
    """
    there = _recorded(to, model)
    return tuple(prompt for prompt in prompts if prompt.key not in there)


async def record(
    asker: Asker,
    prompts: Sequence[Prompt],
    to: Path,
    *,
    at_once: int,
    now: Callable[[], float],
    done: Callable[[int, int], None],
) -> Recorded:
    """Ask what is not recorded yet, and add each answer to `to` as it comes. RemoteRefused, StorageFull."""
    wanted = remaining(prompts, asker.model, to)
    failed: list[Failure] = []
    spent = [0, 0, 0]  # answers, prompt tokens, tokens
    with _appending(to) as file:

        async def one(prompt: Prompt) -> None:
            reply = await asker.ask(prompt)
            if reply.problem is not None:
                failed.append(Failure(prompt.number, reply.problem))
                return
            about = {
                "model": asker.model,
                "answered_by": reply.model,
                "finish_reason": reply.finish,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.tokens,
                "seconds": round(reply.seconds, 3),
                "greedy": asker.greedy,
                "recorded_at": int(now()),
                "row": prompt.number,
            }
            await asyncio.to_thread(_append, file, golden_line(prompt, reply.answer, about))
            for place, amount in enumerate((1, reply.prompt_tokens, reply.tokens)):
                spent[place] += amount

        await each(wanted, one, at_once, done)
        os.fsync(file.fileno())
    fresh, prompt_tokens, tokens = spent
    return Recorded(
        file=str(to),
        model=asker.model,
        rows=len(_recorded(to, asker.model)),
        fresh=fresh,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens,
        greedy=asker.greedy,
        failed=tuple(sorted(failed, key=lambda failure: failure.row)),
    )


def _recorded(to: Path, model: str) -> frozenset[str]:
    """Keys of the prompts that are answered in `to`."""
    if not to.exists():
        return frozenset()
    keys = set()
    good = 0
    with _opened(to) as file:
        for number, raw in enumerate(file, 1):
            row = golden_of(number, raw.decode("utf-8", "replace")) if raw.endswith(b"\n") else None
            if row is None and raw.endswith(b"\n"):
                raise InvalidRequest(f"Line {number} of {to} is no golden row. Name another file; nothing was changed.")
            if row is None:
                file.truncate(good)
                break
            if row.model != model:
                raise InvalidRequest(f"{to} holds answers of {row.model}. Name another file for those of {model}.")
            keys.add(row.prompt.key)
            good += len(raw)
    return frozenset(keys)


def _opened(to: Path) -> BinaryIO:
    try:
        return to.open("r+b")
    except OSError as exc:
        raise InvalidRequest(f"{to} cannot be opened: {exc.strerror}. Name another file.") from None


def _appending(to: Path) -> BinaryIO:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
    except OSError as exc:
        raise StorageFull(f"{to} cannot be written: {exc.strerror}.") from None


def _append(file: BinaryIO, line: str) -> None:
    """One line, out of this process at once: what was paid for is not lost with it."""
    try:
        file.write(line.encode())
        file.flush()
    except OSError as exc:
        raise StorageFull(
            f"{file.name} cannot be written: {exc.strerror}. Free some space, then run this again."
        ) from None


def _tokens(text: str) -> int:
    return int(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN) + 1


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {seconds:.0f} s"
