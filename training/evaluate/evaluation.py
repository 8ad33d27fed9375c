"""What an evaluation found, as frozen values: every row with every answer, and every comparison with its interval.

Pure: figures in, figures out. Must not know HTTP, files or gate rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.evaluate.asking import Answer
from training.evaluate.example import Example, Skipped
from training.evaluate.forgetting import Forgetting
from training.evaluate.interval import Interval, bootstrap
from training.evaluate.overlap import Corpus

CANDIDATE, LIVE, BASE = "candidate", "live", "base"
OTHERS = (BASE, LIVE)
WORST = 20


@dataclass(frozen=True, slots=True)
class Metric:
    """Larger is better, always. noise: a row's change that is none; tolerance: how much worse a mean may be than the
    live version's where nobody says otherwise."""

    name: str
    title: str
    noise: float
    tolerance: float
    bounded: bool = True  # from 0 to 1


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", "Exact match", 0.0, 0.02),
        Metric("rouge_l", "ROUGE-L", 0.05, 0.02),
        Metric("bleu", "BLEU", 0.05, 0.02),
        Metric("chrf", "chrF", 0.05, 0.02),
        Metric("bertscore", "BERTScore", 0.01, 0.02),
        Metric("likelihood", "Log-likelihood per token", 0.1, 0.05, bounded=False),
        Metric("judge", "Judge", 0.0, 0.05, bounded=False),
    )
}


@dataclass(frozen=True, slots=True)
class Line:
    """One row: what each arm answered and scored. judged: other arm → 1, 0, -1 of the candidate against it."""

    example: Example
    answers: Mapping[str, Answer]
    scores: Mapping[str, Mapping[str, float]]  # arm → metric → score; a metric may be missing
    judged: Mapping[str, int] = field(default_factory=dict)

    def difference(self, metric: str, other: str) -> float | None:
        """The candidate's score less the other's; None where one of them has none."""
        if metric == "judge":
            return self.judged.get(other)
        mine, theirs = self.scores[CANDIDATE].get(metric), self.scores.get(other, {}).get(metric)
        return None if mine is None or theirs is None else mine - theirs

    def document(self) -> dict[str, Any]:
        return {
            "row": self.example.number,
            "messages": list(self.example.messages),
            "reference": self.example.reference,
            "script": self.example.script,
            "arms": {
                arm: {
                    "answer": answer.text,
                    "finish": answer.finish,
                    "seconds": round(answer.seconds, 4),
                    "tokens": answer.tokens,
                    "answered_by": answer.served,
                    "scores": {name: round(score, 6) for name, score in self.scores[arm].items()},
                }
                for arm, answer in self.answers.items()
            },
            "judge": dict(self.judged),
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """The candidate against another arm in one metric, row by row."""

    metric: str
    other: str
    interval: Interval
    better: int
    worse: int
    same: int

    def document(self) -> dict[str, Any]:
        counts = {"better": self.better, "worse": self.worse, "same": self.same}
        return {"metric": self.metric, "against": self.other, **self.interval.document(), "rows_that_are": counts}


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of whole answers as they were asked, several at once."""

    median_s: float
    p95_s: float
    tokens: float  # of an answer, on average
    cut_off: int  # answers that ended at max_tokens

    def document(self) -> dict[str, Any]:
        return {
            "median_s": round(self.median_s, 4),
            "p95_s": round(self.p95_s, 4),
            "tokens_per_answer": round(self.tokens, 1),
            "cut_off_at_max_tokens": self.cut_off,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """models: arm → model name (no `live`: nothing is). failed: rows that some arm did not answer.

    guarded: the rows that must not get worse; forgetting: a string says why there is none; about: how it was done.
    """

    models: Mapping[str, str]
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    corpus: Mapping[str, tuple[Corpus, ...]]
    rows: int
    left_out: int
    skipped: tuple[Skipped, ...]
    failed: tuple[Skipped, ...]
    guarded: tuple[Line, ...] | None = None
    guarded_failed: tuple[Skipped, ...] = ()
    forgetting: Forgetting | str | None = None
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_live(self) -> bool:
        return LIVE in self.models

    def mean(self, arm: str, metric: str) -> float | None:
        """Over the rows that have it."""
        found = [line.scores[arm][metric] for line in self.lines if metric in line.scores.get(arm, {})]
        return sum(found) / len(found) if found else None

    def perplexity(self, arm: str) -> float | None:
        """Of right answers: e to the mean loss a token."""
        mean = self.mean(arm, "likelihood")
        return None if mean is None else math.exp(min(-mean, 700.0))

    def difference(self, metric: str, other: str) -> Difference | None:
        return next((each for each in self.differences if (each.metric, each.other) == (metric, other)), None)

    def latency(self, arm: str) -> Latency | None:
        answers = [line.answers[arm] for line in self.lines if arm in line.answers]
        if not answers:
            return None
        times = sorted(answer.seconds for answer in answers)
        tokens = sum(answer.tokens for answer in answers) / len(answers)
        cut = sum(answer.finish == "length" for answer in answers)
        return Latency(times[len(times) // 2], times[min(int(len(times) * 0.95), len(times) - 1)], tokens, cut)

    def worst(self, metric: str, most: int = WORST) -> tuple[Line, ...]:
        """Where the candidate did worst: against the live version (else the base), then in itself."""
        other = LIVE if self.has_live else BASE

        def order(line: Line) -> tuple[float, float, int]:
            own = line.scores[CANDIDATE].get(metric, line.scores[CANDIDATE].get("rouge_l", 0.0))
            return (line.difference(metric, other) or 0.0, own, line.example.number)

        found = sorted(self.lines, key=order)
        return tuple(line for line in found if not perfect(line))[:most]

    def document(self) -> dict[str, Any]:
        """evaluation.json, and what a job's result repeats a part of."""
        arms = list(self.models)
        forgotten = self.forgetting
        return {
            "models": dict(self.models),
            "rows": {
                "in_the_file": self.rows,
                "compared": len(self.lines),
                "left_out_by_sampling": self.left_out,
                "skipped": [{"row": each.number, "reason": each.reason} for each in self.skipped],
                "not_answered": [{"row": each.number, "reason": each.reason} for each in self.failed],
            },
            "scores": {arm: {name: mean for name in METRICS if (mean := self.mean(arm, name)) is not None}
                       for arm in arms},
            "perplexity": {arm: value for arm in arms if (value := self.perplexity(arm)) is not None},
            "corpus": {arm: [_corpus(each) for each in found] for arm, found in self.corpus.items()},
            "differences": [each.document() for each in self.differences],
            "forgetting": forgotten.document() if isinstance(forgotten, Forgetting) else forgotten,
            "latency": {arm: found.document() for arm in arms if (found := self.latency(arm)) is not None},
            "notes": list(self.notes),
            "about": dict(self.about),
            "lines": [line.document() for line in self.lines],
            "guarded": None if self.guarded is None else {
                "lines": [line.document() for line in self.guarded],
                "not_answered": [{"row": each.number, "reason": each.reason} for each in self.guarded_failed],
            },
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """The document without its rows: what a job's result and an event may hold."""
        whole = self.document()
        return {name: value for name, value in whole.items() if name not in ("lines", "guarded")}


def perfect(line: Line) -> bool:
    return line.scores[CANDIDATE].get("exact") == 1.0


def compare(lines: Sequence[Line], others: Sequence[str], *, seed: int) -> tuple[Difference, ...]:
    """Every metric against every other arm, over the rows where both have a score."""
    found = []
    for metric in METRICS.values():
        for other in others:
            values = [value for line in lines if (value := line.difference(metric.name, other)) is not None]
            if not values:
                continue
            better = sum(value > metric.noise for value in values)
            worse = sum(value < -metric.noise for value in values)
            same = len(values) - better - worse
            found.append(Difference(metric.name, other, bootstrap(values, seed=seed), better, worse, same))
    return tuple(found)


def _corpus(each: Corpus) -> dict[str, Any]:
    return {
        "script": each.script,
        "rows": each.rows,
        "bleu": each.bleu,
        "chrf": each.chrf,
        "bleu_signature": each.bleu_signature,
        "chrf_signature": each.chrf_signature,
    }
