"""How sure a mean difference is: a paired bootstrap, with the correction that small samples need.

The plain percentile interval is too narrow for few rows; its ends are moved outwards as Student's t asks ("expanded
percentile": Hesterberg 2015, What Teachers Should Know about the Bootstrap). Must not know what the figures mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from training.extras import need

CONFIDENCE = 0.95
RESAMPLES = 10_000
BLOCK = 1_000_000  # drawn numbers in memory at once
SMALL = 30  # rows; fewer are called a small sample, in words


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of `rows` values, and between which ends it lies with `CONFIDENCE`."""

    mean: float
    low: float
    high: float
    rows: int

    def document(self) -> dict[str, Any]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "rows": self.rows}


def bootstrap(values: Sequence[float], *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean of `values` (one a row: of a comparison, the row's difference). At least one value."""
    np = need("numpy")
    given = np.asarray(values, dtype=float)
    count = len(given)
    mean = math.fsum(values) / count
    if count == 1 or bool(np.all(given == given[0])):
        return Interval(mean, mean, mean, count)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // count)
    means = np.concatenate(
        [
            given[generator.integers(0, count, size=(min(block, resamples - done), count))].mean(axis=1)
            for done in range(0, resamples, block)
        ]
    )
    tail = tail_for(count)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), count)


def tail_for(count: int) -> float:
    """The share that is cut off at each end, so that `count` rows give an interval as wide as Student's t would."""
    wide = math.sqrt(count / (count - 1)) * student((1 + CONFIDENCE) / 2, count - 1)
    return NormalDist().cdf(-wide)


def student(share: float, freedom: int) -> float:
    """Student's t quantile: exact for 1 and 2 degrees of freedom, else Cornish and Fisher's series (within 1 %)."""
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def caution(interval: Interval) -> str | None:
    """What must be said beside an interval of few rows, or of no width."""
    if interval.low == interval.high:
        unseen = 1 - (1 - CONFIDENCE) ** (1 / interval.rows)
        return (
            f"All {interval.rows} rows differ by the same, so the interval has no width; that many rows cannot exclude "
            f"that up to {unseen:.0%} of all questions differ otherwise."
        )
    if interval.rows < SMALL:
        return f"Only {interval.rows} rows: the interval is wide, and other rows may tell another story."
    return None
