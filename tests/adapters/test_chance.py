"""The calculations behind a canary's verdict, against exact ones and against simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.chance import even_groups, failures, spread_of_mean, students_tail

counts = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)).map(
    lambda c: (max(c[0], c[1]), min(c[0], c[1]), max(c[2], c[3]), min(c[2], c[3]))
)


def exact(slots: list[tuple[int, int, int, int]]) -> float:
    """P(as many or more of the failures in the second arm), by going through every way they can fall."""
    sums = {0: 1.0}
    for first, failed, second, other in slots:
        all_failed, whole = failed + other, math.comb(first + second, failed + other)
        following: dict[int, float] = {}
        for mine in range(max(0, all_failed - first), min(second, all_failed) + 1):
            chance = math.comb(second, mine) * math.comb(first, all_failed - mine) / whole
            for before, likely in sums.items():
                following[before + mine] = following.get(before + mine, 0.0) + likely * chance
        sums = following
    seen = sum(other for *_, other in slots)
    return sum(likely for total, likely in sums.items() if total >= seen)


@given(st.lists(counts.filter(lambda c: c[0] + c[2] > 0), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_never_below_the_exact_probability(slots: list[tuple[int, int, int, int]]) -> None:
    assert failures(slots) >= exact(slots) * (1 - 1e-9)


def test_not_far_above_it_either() -> None:
    for slots in ([(450, 2, 50, 6)], [(90, 0, 10, 1)] * 5, [(100, 3, 100, 20), (100, 5, 100, 25)]):
        assert exact(slots) * (1 - 1e-9) <= failures(slots) <= exact(slots) * 100 < 0.1


def test_an_outage_of_both_arms_says_nothing_and_hides_nothing() -> None:
    assert failures([(10, 10, 40, 40)]) == 1.0
    alone = failures([(450, 0, 50, 4)])
    assert failures([(450, 0, 50, 4), (10, 10, 40, 40)]) == pytest.approx(alone, rel=1e-6)
    assert alone == pytest.approx(1e-4, rel=1e-3)  # all four of the tenth of the requests


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [(1, 1, 0.25), (2, 2, 0.09175), (2, 3, 0.06966), (2, 4, 0.05806), (2.228, 10, 0.025), (3.646, 30, 0.0005)],
)
def test_students_tail_is_that_of_the_tables(t: float, freedom: int, tail: float) -> None:
    assert students_tail(t, freedom) == pytest.approx(tail, rel=5e-3)
    assert students_tail(-t, freedom) == pytest.approx(1 - tail, rel=5e-3)


def test_the_ends_of_students_tail() -> None:
    assert students_tail(0, 5) == 0.5
    assert students_tail(math.inf, 5) == pytest.approx(0, abs=1e-12)
    assert all(students_tail(t / 4, 31) >= students_tail((t + 1) / 4, 31) for t in range(60))


def test_the_spread_of_a_mean_whose_requests_come_in_bunches() -> None:
    """Callers differ more than their own requests do: the spread is that of callers."""
    rng = random.Random(1)
    means, told = [], []
    for _ in range(400):
        groups = [[rng.gauss(0, 1)] * rng.randrange(5, 15) for _ in range(12)]  # all requests of a caller are equal
        total = sum(map(len, groups))
        mean = sum(map(sum, groups)) / total
        means.append(mean)
        told.append(spread_of_mean([(sum(group) - len(group) * mean) / total for group in groups]))
    true = sum(mean * mean for mean in means) / len(means)
    assert sum(told) / len(told) == pytest.approx(true, rel=0.25)
    assert true > 5 * 1 / 120, "and many times that of 120 requests which know nothing of each other"


def test_a_large_group_and_small_ones_are_not_many() -> None:
    assert even_groups([20] * 8) == 8
    assert even_groups([1000, 10, 10, 10]) == 1
    assert even_groups([]) == 0
