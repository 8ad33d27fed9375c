"""What judges the fleet's answers can tell right from wrong: it needs no engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.fleet import report, within
from tests.e2e.fleet_adapters import answer
from tests.e2e.fleet_soak import Soak
from tests.e2e.fleet_traffic import BASE, Answered, Asked, Ledger
from tests.e2e.fleet_truth import Truth

NAME, ONE, TWO = "fleet-01", "1" * 12, "2" * 12
ASKED = Asked(NAME, None, "Hello", chat=True, stream=False, user="user-1")


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def ledger(clock: Hand) -> Ledger:
    truth = Truth(clock)
    truth.is_now(NAME, 1)
    return Ledger(truth, {NAME: {ONE: 1, TWO: 2}}, {("Hello", True): "Good day."})


def said(number: int, at: float, asked: Asked = ASKED) -> Answered:
    by = f"{NAME}@{(ONE, TWO)[number - 1]}"
    return Answered(asked, at, at + 0.1, at + 0.2, by, by, answer(NAME, number))


def test_during_a_change_both_are_right_and_afterwards_only_the_new(clock: Hand, ledger: Ledger) -> None:
    clock.now = 10
    with ledger.truth.changing(NAME, 2):
        clock.now = 20
    for at in (5.0, 12.0, 19.95, 21.0):
        ledger.keep(said(1, at))
        ledger.keep(said(2, at))
    reasons = [(each.began, reason) for reason, each in ledger.wrong]
    assert reasons == [(5.0, "version 2 answers, allowed [1]"), (21.0, "version 1 answers, allowed [2]")]


@pytest.mark.parametrize(
    "change",
    [
        {"text": answer(NAME, 2)},
        {"text": answer(NAME, 1) + " "},
        {"model": f"{NAME}@{TWO}"},
        {"answered_by": f"{NAME}@{'3' * 12}"},
        {"answered_by": f"fleet-02@{ONE}"},
        {"answered_by": BASE},
        {"asked": replace(ASKED, version=2)},
        {"asked": replace(ASKED, name=BASE), "answered_by": BASE, "text": "Good night."},
    ],
)
def test_every_kind_of_wrong_answer_is_seen(ledger: Ledger, change: dict[str, str]) -> None:
    ledger.keep(replace(said(1, 1.0), **change))  # type: ignore[arg-type]
    assert len(ledger.wrong) == 1


def test_right_answers_are_right(ledger: Ledger) -> None:
    ledger.keep(said(1, 1.0))
    ledger.keep(said(2, 1.0, replace(ASKED, version=2)))  # by its number: whatever the name answers with
    ledger.keep(replace(said(1, 1.0, replace(ASKED, name=BASE)), answered_by=BASE, text="Good day."))
    assert ledger.wrong == []


def test_who_sees_both_versions_is_named(ledger: Ledger) -> None:
    for user, number in (("user-1", 1), ("user-1", 2), ("user-2", 2), ("user-3", 1), ("user-4", 1)):
        ledger.keep(said(number, 1.0, replace(ASKED, user=user)))
    assert ledger.shares(NAME, 0.0, 2.0) == (["user-1"], 0.25)


def test_only_what_was_under_way_is_excused_by_the_kill(ledger: Ledger) -> None:
    soak = Soak(ledger, seconds=10.0, killed_at=5.0, died_at=5.05)
    for began, ended in ((4.0, 5.1), (5.1, 5.2), (4.0, 4.9)):
        ledger.keep(Answered(ASKED, began, ended, ended, error="cut off"))
    assert [each.began for each in soak.cut] == [4.0]
    assert [each.began for each in soak.failed] == [5.1, 4.0]
    assert "failed               2, and 1 under way" in report(soak)


def test_a_share_of_a_histogram() -> None:
    metrics = {'x_bucket{le="0.1"}': 4.0, 'x_bucket{le="1.0"}': 9.0, 'x_bucket{le="+Inf"}': 10.0, "x_count": 10.0}
    assert [within(metrics, "x", share) for share in (0.4, 0.5, 0.9, 1.0)] == [0.1, 1.0, 1.0, float("inf")]
    assert within({}, "x", 0.5) == 0.0
