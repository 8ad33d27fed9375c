"""How likely a difference is by chance alone: the calculations that judging a canary needs.

Pure functions of numbers. Must not know what is being compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence


def failures(slots: Iterable[tuple[int, int, int, int]]) -> float:
    """At most how likely so many of the failures fall on the second arm, were both arms alike.

    slots: (first's requests, its failures, second's requests, its failures) of times that are compared each with
    itself: where everything fails, in an outage say, nothing is learned. A bound, not an approximation, for any counts:
    within a slot the rarer of failures and successes fall on the arms as balls are drawn without putting back, which
    is less spread than a binomial (Hoeffding 1963), and of that sum Chernoff's bound is taken.
    """
    draws, seen = [], 0  # (how many, chance that one is the second arm's, +1 for failures, -1 for successes)
    for first, failed, second, other in slots:
        worked = first + second - failed - other
        if failed + other <= worked:
            draws.append((failed + other, second / (first + second), 1))
            seen += other
        else:
            draws.append((worked, second / (first + second), -1))
            seen += other - second
    draws = [draw for draw in draws if draw[0]]
    if seen <= sum(sign * count * share for count, share, sign in draws):
        return 1.0
    low, high = 0.0, 60.0  # e^60: where all failures are the second arm's, the bound is its limit to 25 digits
    for _ in range(60):
        tilt = (low + high) / 2
        mean = 0.0
        for count, share, sign in draws:
            tilted = share * math.exp(sign * tilt)
            mean += sign * count * tilted / (1 - share + tilted)
        low, high = (tilt, high) if mean < seen else (low, tilt)
    exponent = sum(count * math.log(1 - share + share * math.exp(sign * low)) for count, share, sign in draws)
    return min(1.0, math.exp(exponent - low * seen))


def students_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's distribution with `freedom` ≥ 1 degrees; exact sums, good to about 1e-15."""
    if t <= 0:
        return 1.0 - students_tail(-t, freedom) if t < 0 else 0.5
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= square * (k - 1) / k
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return max(0.0, (1.0 - inside) / 2)


def spread_of_mean(errors: Sequence[float]) -> float:
    """Variance of an arm's mean from what each group of callers adds to its error: requests of one are not independent.

    errors: per group, the sum of (value less mean), divided by the arm's count. At least two groups.
    """
    groups = len(errors)
    return sum(error * error for error in errors) * groups / (groups - 1)


def even_groups(sizes: Collection[int]) -> int:
    """How many groups of equal size would say as much: with one large and many small ones hardly more than one."""
    return int(sum(sizes) ** 2 / sum(size * size for size in sizes)) if sizes else 0
