"""The intervals are as sure as they say: measured on simulated data, where the truth is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluate.interval import Interval, bootstrap, caution, student, tail_for

FINITE = st.floats(-1000, 1000, allow_nan=False)


@pytest.mark.parametrize(
    ("share", "freedom", "table"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 23, 2.069),
        (0.975, 120, 1.980),
    ],
)
def test_students_quantiles_are_those_of_the_tables(share: float, freedom: int, table: float) -> None:
    assert student(share, freedom) == pytest.approx(table, rel=0.01)


def coverage(rows: int, draw: str, trials: int) -> float:
    """How often the interval holds the true mean."""
    chance, held = random.Random(7), 0
    for trial in range(trials):
        if draw == "normal":
            values, truth = [chance.gauss(0.1, 1) for _ in range(rows)], 0.1
        elif draw == "differences":  # of exact match: mostly 0, some 1, few -1
            values, truth = [chance.choices((0.0, 1.0, -1.0), (0.6, 0.3, 0.1))[0] for _ in range(rows)], 0.2
        else:
            values, truth = [chance.expovariate(1) for _ in range(rows)], 1.0
        found = bootstrap(values, seed=trial, resamples=1000)
        held += found.low <= truth <= found.high
    return held / trials


@pytest.mark.parametrize(
    ("rows", "draw", "least"),
    [
        (8, "normal", 0.92),
        (24, "normal", 0.93),
        (100, "normal", 0.93),
        (24, "differences", 0.92),
        (100, "differences", 0.93),
        (24, "skewed", 0.90),  # a bootstrap of few rows with a long tail is too sure; it is known, and bounded
    ],
)
def test_95_percent_intervals_hold_the_truth_about_95_times_in_100(rows: int, draw: str, least: float) -> None:
    assert least <= coverage(rows, draw, 600) <= 0.985


@given(st.lists(FINITE, min_size=1, max_size=40), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_an_interval_is_around_its_mean_and_within_its_values(values: list[float], seed: int) -> None:
    found = bootstrap(values, seed=seed, resamples=400)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert found == bootstrap(values, seed=seed, resamples=400), "the same seed, the same interval"
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.low - slack <= found.mean <= found.high + slack or len(set(values)) > 1
    assert math.isclose(found.mean, sum(values) / len(values), rel_tol=1e-9, abs_tol=1e-9)
    assert found.rows == len(values)


@given(st.lists(FINITE, min_size=2, max_size=30), st.floats(-50, 50))
@settings(max_examples=30)
def test_adding_the_same_to_every_row_moves_the_interval_by_it(values: list[float], shift: float) -> None:
    one = bootstrap(values, seed=1, resamples=300)
    other = bootstrap([value + shift for value in values], seed=1, resamples=300)
    assert other.low == pytest.approx(one.low + shift, abs=1e-6)
    assert other.high == pytest.approx(one.high + shift, abs=1e-6)


def test_few_rows_give_a_wider_interval_than_the_plain_percentile() -> None:
    assert tail_for(5) < tail_for(24) < tail_for(1000) < 0.0251


def test_what_an_interval_cannot_say_is_said() -> None:
    assert "Only 24 rows" in (caution(Interval(0.5, 0.3, 0.7, 24)) or "")
    assert "up to 12%" in (caution(Interval(1.0, 1.0, 1.0, 24)) or "")
    assert caution(Interval(0.5, 0.4, 0.6, 300)) is None
