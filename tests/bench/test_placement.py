"""The placement bench: its simulation loses no request and keeps its own rules, and its report says what was found."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.placement import placement, run, shape_of
from bench.placement_fleet import Fleet, Shape, requests
from bench.placement_policies import OURS, POLICIES
from bench.report import Run, render

SMALL = Shape(adapters=60, replicas=4, slots=4, seats=8, rate=16.0, warm_s=0.0, seconds=40.0)


def test_requests_are_the_same_each_time_and_follow_zipf() -> None:
    shape = replace(SMALL, rate=200.0, drift=0.0)
    asked = list(requests(shape))
    assert asked == list(requests(shape))
    assert len(asked) == pytest.approx(200 * 40, rel=0.05)
    first, second = (count for _, count in Counter(request.name for request in asked).most_common(2))
    assert 1.6 < first / second < 2.5
    assert [request.at for request in asked] == sorted(request.at for request in asked)


def test_ranks_change_hands_each_minute() -> None:
    shape = replace(SMALL, rate=100.0, seconds=180.0, drift=0.5)
    minutes = itertools.groupby(requests(shape), key=lambda request: request.at // 60)
    busiest = [Counter(request.name for request in group).most_common(5) for _, group in minutes]
    assert len({tuple(name for name, _ in names) for names in busiest}) == 3


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("losses", [(), (5.0, 20.0)])
def test_no_request_is_lost_and_no_replica_holds_more_than_its_slots(policy: str, losses: tuple[float, ...]) -> None:
    fleet = Fleet(replace(SMALL, losses=losses), POLICIES[policy]())
    fleet.run()
    for replica in fleet.replicas:
        waiting = sum(map(len, replica.waiting.values()))
        assert replica.outstanding == len(replica.running) + len(replica.queue) + waiting
        assert len(replica.resident) + (replica.loading is not None) <= SMALL.slots
        assert len(replica.running) <= SMALL.seats
        assert replica.alive or not replica.outstanding
    held = {name: {replica.url for replica in replicas} for name, replicas in fleet.where.items() if replicas}
    for name, urls in held.items():
        assert urls == {r.url for r in fleet.replicas if name in r.resident or name in r.waiting}
    arrived = sum(1 for _ in requests(SMALL))
    started = arrived - sum(len(r.queue) + sum(map(len, r.waiting.values())) for r in fleet.replicas)
    assert len(fleet.delays) >= started  # what a lost replica had begun begins anew
    assert losses or len(fleet.delays) == started
    assert min(fleet.delays) >= 0


def test_placed_is_worth_its_trouble() -> None:
    shape = replace(SMALL, adapters=200, slots=8, warm_s=20.0, seconds=100.0)
    found = {name: run(shape, name) for name in ("random", "consistent hashing, bounded loads", OURS)}
    hits = {name: fleet.hits / fleet.asked for name, fleet in found.items()}
    assert hits[OURS] > 1.05 * hits["consistent hashing, bounded loads"] > hits["random"]


def test_report_has_every_policy_and_the_codes_cost(tmp_path: Path) -> None:
    shape = replace(shape_of(60, quick=True), seconds=60.0, warm_s=0.0, rate=8.0)
    found = placement(shape, tmp_path)
    assert all(values and min(values) > 0 for values in found.costs.values())
    text = render([Run("placement", "today", "a machine", asdict(found))])
    for name in POLICIES:
        assert text.count(f"| {name} |") + text.count(f"| **{name}** |") == 2
    assert "| placement of 60 × 8 × 16, CPU ms |" in text
    assert "| flip: the snapshot after a promotion, ms |" in text
