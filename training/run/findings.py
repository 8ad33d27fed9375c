"""What a curve says while it grows, in words, each kind once: diverged, spikes, too fast, nothing learned, overfitting.

Rules of thumb over the points, pure: no clock, no files. A finding never ends a run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from training.run.progress import Curve

ENOUGH = 10  # losses before anything but NaN is said


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: one stable word; level: info, warn or error."""

    kind: str
    level: str
    message: str


class Findings:
    """`told`: kinds that were said before this process began."""

    def __init__(self, told: Collection[str] = ()) -> None:
        self._told = set(told)

    def look(self, curve: Curve, step: int, steps: int | None) -> list[Finding]:
        """What is new to say at `step` of `steps`."""
        losses, valid = curve.losses(), curve.valid_losses()
        share = step / steps if steps else 0.0
        rules: tuple[Callable[[], Finding | None], ...] = (
            lambda: _nan(losses),
            lambda: _spike(losses),
            lambda: _too_fast(losses),
            lambda: _flat(losses, share),
            lambda: _overfitting(losses, valid),
            lambda: _unfinished(losses, share),
        )
        found = [finding for rule in rules if (finding := rule()) is not None and finding.kind not in self._told]
        self._told.update(finding.kind for finding in found)
        return found


def _nan(losses: Sequence[tuple[int, float]]) -> Finding | None:
    for step, loss in losses:
        if not math.isfinite(loss):
            return Finding(
                "diverged",
                "error",
                f"The loss is not a number any more since step {step}: the run has diverged and will not recover. "
                "Cancel it and train again with a lower learning rate.",
            )
    zeros = [step for step, loss in losses[-3:] if loss == 0.0]
    if len(zeros) == 3:
        return Finding(
            "diverged",
            "error",
            f"The loss has been exactly 0 since step {zeros[0]}: nothing is trained (often NaN in half precision). "
            "Cancel it and train again with a lower learning rate.",
        )
    return None


def _spike(losses: Sequence[tuple[int, float]]) -> Finding | None:
    if len(losses) <= ENOUGH:
        return None
    step, loss = losses[-1]
    usual = statistics.median(value for _, value in losses[-1 - ENOUGH : -1])
    if loss > 3 * usual and loss > usual + 0.5:
        return Finding(
            "spike",
            "warn",
            f"The loss jumped to {loss:.3g} at step {step}, from about {usual:.3g}. Once is harmless; more often, "
            "look at the rows of that step, or lower the learning rate.",
        )
    return None


def _too_fast(losses: Sequence[tuple[int, float]]) -> Finding | None:
    if len(losses) < ENOUGH:
        return None
    first, last = _mean(losses[:3]), _mean(losses[-5:])
    if last > 1.15 * first:
        return Finding(
            "learning rate too high",
            "warn",
            f"The loss has risen from {first:.3g} to {last:.3g}: the learning rate is probably too high. "
            "A third of it is a good next try.",
        )
    return None


def _flat(losses: Sequence[tuple[int, float]], share: float) -> Finding | None:
    if len(losses) < ENOUGH or share < 0.3:
        return None
    first, last = _mean(losses[:3]), _mean(losses[-5:])
    if 0.98 * first <= last <= 1.15 * first and first > 0.01:
        return Finding(
            "nothing learned",
            "warn",
            f"After {share:.0%} of the steps the loss is still about {last:.3g}, as at the start: nothing was learned. "
            "The learning rate may be far too low or too high, or the data has nothing to learn from.",
        )
    return None


def _overfitting(losses: Sequence[tuple[int, float]], valid: Sequence[tuple[int, float]]) -> Finding | None:
    if len(valid) < 3:
        return None
    best_step, best = min(valid, key=lambda each: each[1])
    after = [loss for step, loss in valid if step > best_step]
    since = [loss for step, loss in losses if step > best_step]
    if len(after) < 2 or min(after[-2:]) <= 1.02 * best or (since and since[-1] > 1.02 * since[0]):
        return None
    return Finding(
        "overfitting",
        "warn",
        f"The validation loss was best at step {best_step} ({best:.3g}) and has risen to {after[-1]:.3g} since, while "
        "the training loss has not: the run learns its rows by heart. Fewer epochs, or early stopping, help.",
    )


def _unfinished(losses: Sequence[tuple[int, float]], share: float) -> Finding | None:
    if len(losses) < 2 * ENOUGH or share < 1.0:
        return None
    tenth = max(3, len(losses) // 10)
    before, last = _mean(losses[-2 * tenth : -tenth]), _mean(losses[-tenth:])
    if last > 0.1 and last < 0.9 * before:
        return Finding(
            "underfitting",
            "info",
            f"The loss was still falling at the end (from {before:.3g} to {last:.3g} over the last tenth): "
            "more epochs may help.",
        )
    return None


def _mean(losses: Sequence[tuple[int, float]]) -> float:
    return statistics.fmean(value for _, value in losses)
