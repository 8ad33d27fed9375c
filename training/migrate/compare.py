"""How far a model here says what the old one said: every golden question asked again, the answers compared.

Exact match, chrF and ROUGE-L are training/evaluate's. Must not know what the models are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from adapters.errors import ServiceError
from training.migrate.asking import Asker, Reply, each
from training.migrate.golden import Golden, Prompt, text_of

METRICS = ("exact", "chrf", "rouge_l")
WORST = 20
SEED = 0  # of the resampling: the same answers give the same report


class NothingToCompare(ServiceError):
    status, code = 502, "nothing_to_compare"


@dataclass(frozen=True, slots=True)
class Row:
    """One question. row: its line in the golden file."""

    row: int
    question: str = field(repr=False)
    golden: str = field(repr=False)
    answer: str = field(repr=False)
    exact: float
    chrf: float
    rouge_l: float
    finish: str | None


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over all rows that were answered, and between which ends it lies with 95 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """old: who gave the golden answers; answered_by: model as the answers name it → how many."""

    old: str
    model: str
    answered_by: Mapping[str, int]
    rows: int
    answered: int
    figures: Mapping[str, Figure]
    caution: str | None
    cut_off: int  # answers that ended at the most tokens
    seconds: float | None  # the median answer
    worst: tuple[Row, ...]
    problems: tuple[tuple[int, str], ...]

    def document(self) -> dict[str, Any]:
        made = asdict(self)
        made["problems"] = [{"row": row, "why": why} for row, why in self.problems]
        return made


async def compare(
    asker: Asker, golden: Sequence[Golden], *, at_once: int, done: Callable[[int, int], None]
) -> Comparison:
    """Ask `asker`'s model every golden question; RemoteRefused, NothingToCompare, ExtraMissing."""
    score = _scorer()  # before a question is asked: it may lack a library
    of = {each_.prompt.key: each_ for each_ in golden}
    rows: list[Row] = []
    replies: list[Reply] = []
    problems: list[tuple[int, str]] = []

    async def one(prompt: Prompt) -> None:
        reply = await asker.ask(prompt)
        if reply.problem is not None:
            problems.append((prompt.number, reply.problem))
            return
        replies.append(reply)
        said, right = text_of(reply.answer), text_of(of[prompt.key].answer)
        rows.append(Row(prompt.number, _question(prompt), right, said, **score(said, right), finish=reply.finish))

    await each([found.prompt for found in of.values()], one, at_once, done)
    if not rows:
        raise NothingToCompare(f"{asker.model} answered none of {len(of)} questions. The first: {problems[0][1]}")
    return _comparison(asker.model, golden, len(of), sorted(rows, key=lambda row: row.row), replies, problems)


def _scorer() -> Callable[[str, str], dict[str, float]]:
    from training.evaluate.exact import exact
    from training.evaluate.overlap import Overlap

    overlap = Overlap()

    def score(said: str, right: str) -> dict[str, float]:
        return {
            "exact": exact(said, right),
            "chrf": overlap.chrf(said, right),
            "rouge_l": overlap.rouge_l(said, right),
        }

    return score


def _comparison(
    model: str,
    golden: Sequence[Golden],
    asked: int,
    rows: Sequence[Row],
    replies: Sequence[Reply],
    problems: Sequence[tuple[int, str]],
) -> Comparison:
    from training.evaluate.interval import bootstrap, caution

    found = {name: bootstrap([getattr(row, name) for row in rows], seed=SEED) for name in METRICS}
    return Comparison(
        old=", ".join(sorted({each_.model for each_ in golden})),
        model=model,
        answered_by=dict(Counter(reply.model for reply in replies)),
        rows=asked,
        answered=len(rows),
        figures={name: Figure(at.mean, at.low, at.high) for name, at in found.items()},
        caution=caution(found["chrf"]),
        cut_off=sum(row.finish == "length" for row in rows),
        seconds=round(median(reply.seconds for reply in replies), 3),
        worst=tuple(sorted((row for row in rows if not row.exact), key=lambda row: (row.chrf, row.row))[:WORST]),
        problems=tuple(sorted(problems)),
    )


def _question(prompt: Prompt) -> str:
    return text_of(prompt.messages[-1])
