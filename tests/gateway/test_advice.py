"""What more slots would do, from figures."""

from __future__ import annotations

import pytest

from gateway.advice import Advice, Pool, advise

MiB = 2**20


def _advice(
    rates: list[float],
    *,
    misses: int = 0,
    requests: int = 1000,
    per_engine: tuple[int, ...] = (4,),
    held: int = 0,
    away: int = 0,
    **more: int,
) -> Advice:
    slot = more.get("slot_bytes")
    return advise(
        rates,
        working_set=len(rates),
        requests=requests,
        misses=misses,
        load_s=0.4,
        pool=Pool(per_engine, [held] * len(per_engine), away),
        slot_bytes=slot,
    )


def test_a_working_set_that_fits_needs_nothing() -> None:
    advice = _advice([1.0] * 4, misses=300)
    assert (advice.max_loras, advice.text) == (None, "4 adapters are in use and 4 fit.")


def test_a_working_set_that_does_not_fit_is_said_with_what_would_hold_it() -> None:
    advice = _advice([1.0] * 14, misses=230, per_engine=(4, 4), slot_bytes=10 * MiB)
    assert (advice.slots, advice.hit_ratio, advice.max_loras, advice.memory_bytes) == (8, 0.77, 7, 30 * MiB)
    assert advice.text == (
        "14 adapters are in use and 8 fit: 23% of requests wait for a load of 0.4 s. Start the engines with "
        "--max-loras 7, which takes about 30 MiB more of each engine's memory: then about 100% would find theirs."
    )


def test_adapters_that_are_hardly_asked_for_are_no_reason_to_grow() -> None:
    advice = _advice([10.0] * 4 + [0.001] * 100, misses=5)
    assert advice.max_loras is None
    assert "99.5%" in advice.text


@pytest.mark.parametrize(
    ("requests", "per_engine", "said"), [(10, (4,), "Too few requests"), (1000, (), "No engine is ready")]
)
def test_without_figures_nothing_is_advised(requests: int, per_engine: tuple[int, ...], said: str) -> None:
    advice = _advice([1.0] * 50, misses=requests, requests=requests, per_engine=per_engine)
    assert advice.max_loras is None
    assert said in advice.text


def test_an_engine_that_is_away_is_to_be_brought_back_before_others_are_started_anew() -> None:
    advice = _advice([1.0] * 7, misses=430, away=1)
    assert (advice.max_loras, advice.text) == (
        None,
        "7 adapters are in use and 4 fit: 43% of requests wait for a load of 0.4 s. "
        "1 of 2 engines is not ready: bring it back first.",
    )
    advice = _advice([1.0] * 17, misses=430, away=1)
    assert advice.max_loras == 9
    assert advice.text.endswith(
        "1 of 2 engines is not ready: bring it back first. "
        "Start the engines with --max-loras 9: then about 100% would find theirs."
    )


def test_places_that_are_pinned_are_not_there_for_others() -> None:
    advice = _advice([1.0] * 4, misses=500, per_engine=(4, 4), held=3, slot_bytes=10 * MiB)
    assert (advice.slots, advice.max_loras, advice.memory_bytes) == (2, 5, 10 * MiB)
    assert advice.text.startswith(
        "4 adapters are in use and 2 fit beside the 3 on each engine that are pinned or not this gateway's: 50% of "
    )
    assert _advice([1.0], per_engine=(4, 4), held=3).text == "1 adapter is in use and 2 fit."
