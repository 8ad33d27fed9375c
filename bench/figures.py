"""Arithmetic of the report: medians with their spread, differences and ratios taken within a round.

Peers that ran in the same round saw the same machine, so a ratio is made per round and then its median is taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the lowest and highest of the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0, unit: str = "") -> str:
        if self.low == self.high:
            return f"{self.median:.{digits}f}{unit}"
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread | None:
    """None when there is nothing to say."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def of(samples: Sequence[Sample], figure: str) -> Spread | None:
    """One figure over the rounds that have it."""
    return spread([sample[figure] for sample in samples if figure in sample])


def paired(
    samples: Sequence[Sample], others: Sequence[Sample], figure: str, by: Callable[[float, float], float]
) -> Spread | None:
    """`by(own, other)` within each round where both have the figure."""
    rounds = zip(samples, others, strict=False)
    return spread([by(own[figure], other[figure]) for own, other in rounds if figure in own and figure in other])


def added(samples: Sequence[Sample], direct: Sequence[Sample], figure: str) -> Spread | None:
    """How much more than without a proxy, in the figure's own unit."""
    return paired(samples, direct, figure, lambda own, other: own - other)


def ratio(samples: Sequence[Sample], others: Sequence[Sample], figure: str) -> Spread | None:
    """How many times the other's figure; rounds in which the other's is 0 are left out."""
    rest = [other if other.get(figure) else {} for other in others]
    return paired(samples, rest, figure, lambda own, other: own / other)
