"""Who meets the canary: always the same callers, in every process, and more of them as the share grows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.v1.snapshot import Target
from gateway.v1.split import MAX_CALLER, Part, caller, split

CANARY = Target("support", "support@111111111111", "111111111111")
LIVE = Target("support", "support@000000000000", "000000000000", canary=CANARY, canary_percent=10)


def part(who: str, percent: float = 10, key: str = "k1", canary: Target = CANARY) -> Part:
    return split(replace(LIVE, canary_percent=percent), canary, key, {"user": who} if who else {})


@given(who=st.text(max_size=20), key=st.text(max_size=12), small=st.floats(0, 100), more=st.floats(0, 100))
def test_growing_the_share_never_takes_the_canary_away(who: str, key: str, small: float, more: float) -> None:
    small, more = sorted((small, more))
    assert part(who, small, key).chosen <= part(who, more, key).chosen
    assert part(who, 100, key).chosen
    assert not part(who, 0, key).chosen


def test_the_same_in_all_processes() -> None:
    """Fixed for ever: another hash would move callers between versions when a gateway is updated."""
    chosen = [n for n in range(40) if part(f"user-{n}").chosen]
    assert chosen == [2, 6, 14, 29]


def test_the_share_is_that_of_the_callers() -> None:
    for percent in (1, 10, 50):
        chosen = sum(part(f"user-{n}", percent).chosen for n in range(20_000))
        assert abs(chosen - 200 * percent) < 4 * (200 * percent * (1 - percent / 100)) ** 0.5


def test_another_key_version_or_name_is_another_draw() -> None:
    everybody = [f"user-{n}" for n in range(4000)]
    first = {who for who in everybody if part(who).chosen}
    other = replace(CANARY, version="222222222222")
    for again in (
        {who for who in everybody if part(who, key="k2").chosen},
        {who for who in everybody if part(who, canary=other).chosen},
        {who for who in everybody if split(replace(LIVE, name="sales"), CANARY, "k1", {"user": who}).chosen},
    ):
        assert 5 < len(first & again) < 100, "about one in a hundred, not the same tenth again"


def test_the_group_of_a_caller_does_not_depend_on_the_arm() -> None:
    parts = [part(f"user-{n}", 50) for n in range(4000)]
    groups = [{one.group for one in parts if one.chosen is arm} for arm in (False, True)]
    assert min(map(len, groups)) > 250


def test_whom_a_caller_speaks_for() -> None:
    told: list[tuple[dict[str, Any], str]] = [
        ({"safety_identifier": "a", "user": "b", "metadata": {"user_id": "c"}}, "a"),
        ({"user": "b", "metadata": {"user_id": "c"}}, "b"),
        ({"metadata": {"user_id": "c"}}, "c"),
        ({"safety_identifier": "", "user": None, "metadata": None}, ""),
        ({"user": 7, "metadata": "x"}, ""),
        ({"user": {"id": "x"}, "metadata": {"user_id": ["x"]}}, ""),
        ({"user": "x" * 10_000}, "x" * MAX_CALLER),
        ({}, ""),
    ]
    assert [caller(body) for body, _ in told] == [who for _, who in told]
