"""Placement: every name where it should be, the same everywhere, and nothing moves without a reason."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.placement import EMPTY, Plan, home, place, relief, rendezvous

URLS = tuple(f"http://10.0.0.{number}:8000" for number in range(64))
NAMES = st.dictionaries(
    st.integers(0, 999).map("adapter-{}@0".format), st.floats(0, 1e6, allow_subnormal=False), max_size=40
)
SLOTS = st.dictionaries(st.sampled_from(URLS[:8]), st.integers(0, 6), max_size=8)


def zipf(count: int, skew: float = 1.0) -> dict[str, float]:
    return {f"adapter-{rank:05d}@{rank:012x}": 100.0 / (rank + 1) ** skew for rank in range(count)}


def noisy(demand: Mapping[str, float], rng: random.Random, share: float = 0.05) -> dict[str, float]:
    return {name: rate * rng.uniform(1 - share, 1 + share) for name, rate in demand.items()}


def held(plan: Plan) -> Counter[str]:
    """Names on each URL."""
    return Counter(url for homes in plan.homes.values() for url in homes)


def loads(before: Plan, after: Plan) -> list[tuple[str, str]]:
    """(name, URL) that are new in `after`."""
    return [(n, url) for n, homes in after.homes.items() for url in homes if url not in before.homes.get(n, ())]


# rendezvous


def test_order_is_the_same_in_every_process_and_for_every_order_given() -> None:
    code = "from adapters.placement import rendezvous; print(*rendezvous('sql@1', [f'http://{i}' for i in range(9)]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    mixed = [f"http://{number}" for number in (3, 1, 8, 0, 2, 7, 6, 5, 4)]
    assert list(rendezvous("sql@1", mixed)) == said
    assert sorted(said) == sorted(mixed)


def test_names_are_spread_evenly_in_first_and_in_second_place() -> None:
    urls = URLS[:8]
    orders = [rendezvous(f"adapter-{number}", urls) for number in range(8_000)]
    pairs = Counter((order[0], order[1]) for order in orders)
    assert all(850 < count < 1150 for count in Counter(order[0] for order in orders).values())  # 1000 ± 5 sigma
    assert all(80 < pairs[a, b] < 206 for a in urls for b in urls if a != b)  # 143 ± 5 sigma


def test_a_url_that_goes_changes_nothing_among_the_others() -> None:
    for name in zipf(50):
        assert rendezvous(name, URLS[1:]) == tuple(url for url in rendezvous(name, URLS) if url != URLS[0])


# place


@given(NAMES, SLOTS, st.lists(st.sampled_from(["pin-a", "pin-b", "adapter-1@0"]), unique=True), st.data())
def test_no_plan_breaks_a_rule_whatever_it_comes_from(
    demand: dict[str, float], slots: dict[str, int], pinned: list[str], data: st.DataObject
) -> None:
    before = EMPTY
    for _ in range(2):  # from nothing, then from a plan for another demand on other replicas
        plan = place(demand, slots, pinned, before)
        own = {name: homes for name, homes in plan.homes.items() if name not in pinned}
        assert {name: set(plan.homes[name]) for name in pinned} == {name: set(slots) for name in pinned}
        assert set(own) <= set(demand)
        assert all(homes and len(set(homes)) == len(homes) for homes in own.values())
        assert all(count <= slots[url] for url, count in held(Plan(own)).items())
        wanted = demand.keys() - set(pinned)
        room = sum(min(count, len(wanted)) for count in slots.values())
        if room >= len(wanted):
            assert set(own) == wanted
        else:
            assert sum(held(Plan(own)).values()) == room  # no slot is left empty while names go without
        if slots and min(slots.values()) >= len(wanted):
            assert all(set(homes) == set(slots) for homes in own.values())
        again = place(demand, slots, pinned, plan)  # may still place what had no way to a free slot
        assert not loads(plan, again) or sum(held(plan).values()) < sum(held(again).values())
        assert place(demand, slots, pinned, again).homes == again.homes  # nothing changed: nothing moves
        before, demand, slots = plan, data.draw(NAMES), data.draw(SLOTS)


def test_without_replicas_or_room_there_are_no_homes_and_nothing_breaks() -> None:
    assert place({"a": 1.0}, {}).homes == {}
    assert place({"a": 1.0}, {URLS[0]: 0}).homes == {}
    assert place({}, {URLS[0]: 4}, ["p"]).homes == {"p": (URLS[0],)}
    assert place({"a": 1.0}, {URLS[0]: 0}, ["p"]).homes == {"p": (URLS[0],)}


def test_with_too_few_slots_those_asked_for_most_have_them_and_equal_ones_go_by_name() -> None:
    slots = dict.fromkeys(URLS[:2], 1)
    assert set(place({"a": 1.0, "b": 3.0, "c": 2.0}, slots).homes) == {"b", "c"}
    assert set(place({"c": 1.0, "b": 1.0, "a": 1.0}, slots).homes) == {"a", "b"}


def test_left_slots_give_copies_in_proportion() -> None:
    plan = place({"a": 8.0, "b": 4.0, "c": 1.0, "idle": 0.0}, dict.fromkeys(URLS[:8], 2))
    copies = {name: len(homes) for name, homes in plan.homes.items()}
    assert copies == {"a": 8, "b": 5, "c": 2, "idle": 1}


def test_a_name_too_heavy_for_one_replica_has_copies_even_when_others_go_without() -> None:
    demand = zipf(10_000)
    plan = place(demand, dict.fromkeys(URLS, 16))
    mean = sum(demand[name] for name in plan.homes) / len(URLS)
    assert max(demand[name] / len(homes) for name, homes in plan.homes.items()) <= 0.5 * mean
    assert 900 < len(plan.homes) < 1024


@pytest.mark.parametrize(("count", "skew"), [(10_000, 1.0), (10_000, 0.8), (800, 1.0)])
def test_noise_moves_next_to_nothing_and_gateways_agree(count: int, skew: float) -> None:
    demand, slots, rng = zipf(count, skew), dict.fromkeys(URLS, 16), random.Random(5)
    one = two = EMPTY
    moved = 0
    for _ in range(10):
        one_next, two = place(noisy(demand, rng), slots, (), one), place(noisy(demand, rng), slots, (), two)
        moved += len(loads(one, one_next)) if one is not EMPTY else 0
        one = one_next
    names = one.homes.keys() | two.homes.keys()
    agreed = sum(home(one, name, URLS)[0] == home(two, name, URLS)[0] for name in names)
    assert agreed >= 0.95 * len(names)
    assert moved <= 5  # of 1024 homes, in ten seconds


def test_demand_that_truly_grows_gains_copies_and_loses_them_only_when_it_is_clearly_less() -> None:
    slots, rest = dict.fromkeys(URLS[:8], 4), dict.fromkeys((f"other-{number}" for number in range(16)), 1.0)
    copies, before = [], EMPTY
    for rate in (1.0, 6.0, 5.0, 4.5, 0.5):
        before = place({**rest, "hot": rate}, slots, (), before)
        copies.append(len(before.homes["hot"]))
    assert copies[0] <= 2
    assert copies[1] == copies[2] == copies[3] > copies[0]
    assert copies[4] < copies[3]


MEMBERS = st.lists(st.sampled_from(URLS[:16]), min_size=3, max_size=12, unique=True)


@settings(max_examples=50)
@given(MEMBERS, st.integers(1, 6), st.integers(1, 120), st.floats(0, 1.2), st.integers(0, 99))
def test_a_url_that_goes_moves_only_what_it_held(
    urls: list[str], each: int, count: int, skew: float, seed: int
) -> None:
    demand = noisy(zipf(count, skew), random.Random(seed), 0.5)
    slots = dict.fromkeys(urls, each)
    before = place(demand, slots)
    gone = urls[seed % len(urls)]
    after = place(demand, {url: each for url in urls if url != gone}, (), before)
    assert len(loads(before, after)) <= 2 * held(before)[gone]


@settings(max_examples=50)
@given(MEMBERS, st.integers(1, 6), st.integers(1, 120), st.floats(0, 1.2), st.integers(0, 99))
def test_a_url_that_joins_takes_its_share_and_little_else_moves(
    urls: list[str], each: int, count: int, skew: float, seed: int
) -> None:
    demand = noisy(zipf(count, skew), random.Random(seed), 0.5)
    slots = dict.fromkeys(urls[1:], each)
    before = place(demand, slots)
    after = place(demand, {**slots, urls[0]: each}, (), before)
    assert held(after)[urls[0]] >= min(each, sum(held(before).values()) // len(urls))
    assert sum(url != urls[0] for _, url in loads(before, after)) <= 2 * each


# home


def test_homes_are_tried_first_and_every_replica_once() -> None:
    plan = Plan({"a": (URLS[5], URLS[2], "http://gone")})
    order = home(plan, "a", URLS[:8])
    assert order[:2] == (URLS[5], URLS[2])
    assert sorted(order) == sorted(URLS[:8])
    assert home(plan, "b", URLS[:8]) == rendezvous("b", URLS[:8])


# relief


def test_the_busiest_name_of_an_overloaded_replica_goes_to_a_calm_one_that_lacks_it() -> None:
    one, two, three = URLS[:3]
    busy = {one: {"hot": 7, "warm": 3}, two: {"warm": 2}, three: {"cold": 1}}
    resident = {url: frozenset(names) for url, names in busy.items()}
    outstanding = {one: 10, two: 2, three: 1}
    assert relief(EMPTY, outstanding, busy, resident) == [("hot", three)]  # the least busy of those near
    resident[two] |= {"hot"}
    assert relief(EMPTY, outstanding, busy, resident) == []  # a calm replica has it: routing will use that


def test_nothing_is_relieved_where_all_have_about_the_same_to_do() -> None:
    busy = {url: {"a": count} for url, count in zip(URLS[:3], (8, 9, 10), strict=True)}
    resident = dict.fromkeys(busy, frozenset({"a"}))
    assert relief(EMPTY, {url: sum(names.values()) for url, names in busy.items()}, busy, resident) == []
    assert relief(EMPTY, {URLS[0]: 2}, {URLS[0]: {"a": 2}}, {}) == []
    assert relief(EMPTY, {}, {}, {}) == []
