"""Token buckets, reservations and OpenAI's rate headers, on an invented clock."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import QuotaExceeded, RateLimited
from gateway.v1.limits import Ledger, duration
from gateway.v1.snapshot import NO_LIMITS, Limits

DAY = 86_400.0


def test_requests_a_minute_refill_evenly() -> None:
    ledger, limits = Ledger(), Limits(rpm=60)
    for _ in range(60):
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 0.0, 0.0)
    with pytest.raises(RateLimited) as refused:
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 0.0, 0.0)
    assert refused.value.retry_after_s == 1
    ledger.reserve("k", limits, "m", NO_LIMITS, 1, 1.0, 1.0)
    with pytest.raises(RateLimited):
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 1.0, 1.0)


def test_a_request_refused_for_concurrency_costs_neither_requests_nor_tokens() -> None:
    ledger, limits = Ledger(), Limits(rpm=2, tpm=100, concurrency=1)
    first = ledger.reserve("k", limits, "m", NO_LIMITS, 10, 0.0, 0.0)
    for _ in range(5):
        with pytest.raises(RateLimited, match="already being answered"):
            ledger.reserve("k", limits, "m", NO_LIMITS, 10, 0.0, 0.0)
    first.settle(10)
    ledger.reserve("k", limits, "m", NO_LIMITS, 10, 0.0, 0.0)
    assert b"x-ratelimit-remaining-tokens: 80\r\n" in ledger.headers("k", "m", 0.0)


def test_a_refusal_by_the_model_takes_nothing_from_the_key() -> None:
    ledger, key, model = Ledger(), Limits(rpm=10), Limits(rpm=1)
    ledger.reserve("k", key, "m", model, 1, 0.0, 0.0)
    with pytest.raises(RateLimited, match="Model m"):
        ledger.reserve("k", key, "m", model, 1, 0.0, 0.0)
    ledger.reserve("k", key, "other", NO_LIMITS, 1, 0.0, 0.0)
    assert b"x-ratelimit-remaining-requests: 8\r\n" in ledger.headers("k", "other", 0.0)


def test_settlement_returns_what_was_not_used_and_owes_what_was_used_beyond() -> None:
    ledger, limits = Ledger(), Limits(tpm=600)
    ledger.reserve("k", limits, "m", NO_LIMITS, 500, 0.0, 0.0).settle(100)
    assert b"remaining-tokens: 500\r\n" in ledger.headers("k", "m", 0.0)
    ledger.reserve("k", limits, "m", NO_LIMITS, 500, 0.0, 0.0).settle(700)
    assert b"remaining-tokens: 0\r\n" in ledger.headers("k", "m", 0.0)
    with pytest.raises(RateLimited) as refused:  # 200 owed: 20 s until it is even one token above
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 0.0, 0.0)
    assert refused.value.retry_after_s == 21
    ledger.reserve("k", limits, "m", NO_LIMITS, 1, 20.2, 20.2)


def test_settling_twice_counts_once() -> None:
    ledger, limits = Ledger(), Limits(tpm=600, concurrency=1)
    reservation = ledger.reserve("k", limits, "m", NO_LIMITS, 500, 0.0, 0.0)
    reservation.settle(100)
    reservation.settle(0)
    reservation.cancel()
    assert b"remaining-tokens: 500\r\n" in ledger.headers("k", "m", 0.0)
    ledger.reserve("k", limits, "m", NO_LIMITS, 1, 0.0, 0.0)
    with pytest.raises(RateLimited):
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 0.0, 0.0)


def test_a_cancelled_reservation_costs_nothing() -> None:
    ledger, limits = Ledger(), Limits(rpm=1, tpm=100)
    ledger.reserve("k", limits, "m", NO_LIMITS, 100, 0.0, 0.0).cancel()
    ledger.reserve("k", limits, "m", NO_LIMITS, 100, 0.0, 0.0)


def test_a_request_larger_than_the_whole_limit_is_told_not_to_come_back() -> None:
    with pytest.raises(QuotaExceeded) as refused:
        Ledger().reserve("k", Limits(tpm=100), "m", NO_LIMITS, 101, 0.0, 0.0)
    assert refused.value.retryable is False
    assert refused.value.status == 429


def test_the_daily_budget_rolls_at_midnight_utc_and_survives_a_restart() -> None:
    ledger, limits = Ledger(), Limits(daily_tokens=100)
    ledger.restore("key", "k", limits, 60, 0.0, 10 * DAY)
    with pytest.raises(QuotaExceeded, match="today"):
        ledger.reserve("k", limits, "m", NO_LIMITS, 41, 0.0, 10 * DAY)
    late = ledger.reserve("k", limits, "m", NO_LIMITS, 40, 0.0, 10 * DAY + 1)
    ledger.reserve("k", limits, "m", NO_LIMITS, 100, 0.0, 11 * DAY)
    late.settle(90)  # yesterday's answer is not charged to today
    with pytest.raises(QuotaExceeded):
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 0.0, 11 * DAY)


def test_changed_limits_keep_what_was_used() -> None:
    ledger = Ledger()
    ledger.reserve("k", Limits(tpm=100), "m", NO_LIMITS, 80, 0.0, 0.0)
    with pytest.raises(RateLimited):
        ledger.reserve("k", Limits(tpm=200), "m", NO_LIMITS, 41, 0.0, 0.0)
    ledger.reserve("k", Limits(tpm=200), "m", NO_LIMITS, 40, 0.0, 0.0)


def test_a_clock_that_steps_back_refills_nothing_and_breaks_nothing() -> None:
    ledger, limits = Ledger(), Limits(rpm=1)
    ledger.reserve("k", limits, "m", NO_LIMITS, 1, 100.0, 100.0)
    with pytest.raises(RateLimited) as refused:
        ledger.reserve("k", limits, "m", NO_LIMITS, 1, 40.0, 40.0)
    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 120


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"0ms"), (0.0201, b"21ms"), (1, b"1s"), (59.2, b"1m0s"), (360, b"6m0s"), (3723, b"1h2m3s")],
)
def test_spans_are_written_as_openai_writes_them(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text
    assert re.fullmatch(rb"\d+ms|\d+s|\d+m\d+s|\d+h\d+m\d+s", text)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 300), st.floats(0, 1.5), st.booleans()), min_size=1, max_size=60)
)
def test_no_order_of_events_passes_the_budget(steps: list[tuple[float, int, float, bool]]) -> None:
    """Against a plain model: reservations at any moment never exceed what a full bucket plus refill allows."""
    ledger, limits, now = Ledger(), Limits(tpm=600), 0.0
    spent = 0.0
    open_reservations = []
    for pause, tokens, used_share, settle_now in steps:
        now += pause
        try:
            reservation = ledger.reserve("k", limits, "m", NO_LIMITS, tokens, now, now)
        except RateLimited:
            pass
        else:
            open_reservations.append((reservation, tokens, used_share))
            spent += tokens
            assert spent <= 600 + now * 10 + 1e-6
        if settle_now and open_reservations:
            reservation, tokens, used_share = open_reservations.pop(0)
            used = int(tokens * min(used_share, 1.0))
            reservation.settle(used)
            spent += used - tokens
