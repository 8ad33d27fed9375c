"""Evaluations made by hand: what a gate or a report sees, without anybody being asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluate.asking import Answer
from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, Evaluation, Line, compare
from training.evaluate.example import Example, Skipped
from training.evaluate.forgetting import Forgetting
from training.evaluate.interval import bootstrap

MODELS = {CANDIDATE: "shop@0123456789ab", LIVE: "shop@ba9876543210", BASE: "demo-base"}


def line(number: int, scores: Mapping[str, float], metric: str = "exact") -> Line:
    """scores: arm → its score in `metric`."""
    example = Example(number, ({"role": "user", "content": f"Question {number}?"},), f"Answer {number}.")
    answers = {arm: Answer(f"{arm} {number}", "stop", 0.1 * number, 4, MODELS[arm], "vllm-0.32.0") for arm in scores}
    return Line(example, answers, {arm: {metric: score} for arm, score in scores.items()})


def lines(metric: str = "exact", **arms: Sequence[float]) -> tuple[Line, ...]:
    """candidate=[…], base=[…], live=[…]: one score a row."""
    count = len(arms[CANDIDATE])
    return tuple(line(at + 1, {arm: scores[at] for arm, scores in arms.items()}, metric) for at in range(count))


def evaluation(made: tuple[Line, ...], **more: Any) -> Evaluation:
    arms = list(made[0].scores) if made else [CANDIDATE, BASE]
    others = [arm for arm in (BASE, LIVE) if arm in arms]
    fields: dict[str, Any] = {
        "models": {arm: MODELS[arm] for arm in arms},
        "lines": made,
        "differences": compare(made, others, seed=1),
        "corpus": {},
        "rows": len(made),
        "left_out": 0,
        "skipped": (),
        "failed": (),
        **more,
    }
    return Evaluation(**fields)


def forgotten(*rises: float, base: float = 3.0) -> Forgetting:
    """rises: of the candidate, one a piece."""
    found = bootstrap(rises, seed=1)
    losses = {CANDIDATE: base + found.mean, LIVE: base, BASE: base}
    rises_of = {CANDIDATE: found, LIVE: bootstrap([0.0] * len(rises), seed=1)}
    return Forgetting("general.jsonl", "0" * 64, len(rises), losses, rises_of, ())


def failed(count: int) -> tuple[Skipped, ...]:
    return tuple(Skipped(100 + at, "demo-base was not answered: the prompt is too long.") for at in range(count))
