"""Counting and judging, simulated with fixed seeds: what ends a canary, how soon, and how rarely by mistake."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from adapters.canary import Verdict
from adapters.errors import Unavailable
from adapters.types import Adapter, Canary, Rules
from gateway.canary import FAULTS, SLOT_REQUESTS, SLOTS, Canaries, Trial
from gateway.metrics import MODEL_LABELS, Metrics
from gateway.v1.snapshot import Snapshot, Target
from gateway.v1.split import Part

VERSION = "1" * 12
TRYING = Canary(VERSION, 10, 1.0, Rules())
TRIED = Target("support", f"support@{VERSION}", VERSION)


def _part(chosen: bool, group: int = 0, **noted: str | float) -> Part:
    part = Part(TRIED, VERSION, chosen, group)
    for name, value in noted.items():
        setattr(part, name, value)
    return part


@dataclass(frozen=True)
class World:
    """Callers, and how both versions serve them: (live, canary)."""

    percent: float = 50
    errors: tuple[float, float] = (0.004, 0.004)
    first_s: tuple[float, float] = (0.15, 0.15)
    cut: tuple[float, float] = (0.1, 0.1)  # share of answers that end with "length"
    callers: int = 200
    apart: float = 0.0  # how much callers differ from each other
    outages: bool = False
    a_second: float = 20.0


def _requests(world: World, rng: random.Random) -> Iterator[tuple[float, Part, str, float]]:
    """(time, part, outcome, seconds) for ever."""
    callers = [
        (rng.random() * 100 < world.percent, n, rng.gauss(0, world.apart), abs(rng.gauss(0, world.apart)))
        for n in range(world.callers)
    ]
    now = 0.0
    while True:
        now += rng.expovariate(world.a_second)
        chosen, group, slower, cuts = rng.choice(callers)
        failing = 1.0 if world.outages and now % 100 > 90 else world.errors[chosen]
        if rng.random() < failing:
            yield now, _part(chosen, group), "error", 1.0
        else:
            finish = "length" if rng.random() < world.cut[chosen] + cuts else "stop"
            first_s = world.first_s[chosen] * math.exp(rng.gauss(slower, 0.6))
            yield now, _part(chosen, group, finish=finish, first_s=first_s), "ok", first_s + 1


def _run(world: World, seed: int, requests: int = 1000) -> tuple[int, Verdict | None]:
    """How many requests the canary had, and what ended it."""
    trial, looked, had = Trial(VERSION, 0.0), 0, 0
    for now, part, outcome, seconds in _requests(world, random.Random(seed)):
        trial.record(part, outcome, seconds, 50, now, stream=True)
        had += part.chosen
        if int(now) > looked:  # the loop looks once a second
            looked = int(now)
            verdict = trial.look() if trial.due() else None
            if verdict is not None or had >= requests:
                return had, verdict
    raise AssertionError


def test_equal_arms_are_left_alone() -> None:
    """Fewer than 1 % of canaries of 1,000 requests, looked at about 35 times each; docs/canary.md has longer runs."""
    worlds = [
        World(),
        World(errors=(0.1, 0.1)),
        World(outages=True),
        World(callers=12, apart=0.5),
        World(callers=40, apart=1.0, percent=30),
    ]
    ended = [(world, verdict) for world in worlds for seed in range(24) if (verdict := _run(world, seed)[1])]
    assert ended == []


@pytest.mark.parametrize(
    ("world", "reason", "soon"),
    [
        (World(percent=10, errors=(0.004, 0.1)), "errors", 120),
        (World(percent=50, errors=(0.0, 1.0)), "errors", 75),
        (World(percent=50, first_s=(0.15, 0.45)), "latency", 90),
        (World(percent=50, cut=(0.1, 0.6)), "finish_reasons", 120),
        (World(percent=50, errors=(0.004, 0.1), outages=True), "errors", 300),
    ],
    ids=["10 % errors", "all fail", "three times as slow", "cut off", "errors between outages"],
)
def test_bad_ones_end_soon(world: World, reason: str, soon: int) -> None:
    runs = [_run(world, seed) for seed in range(15)]
    assert {verdict.reason if verdict else None for _, verdict in runs} == {reason}
    assert sorted(had for had, _ in runs)[len(runs) // 2] <= soon


def test_a_fault_that_comes_late_is_seen_as_soon() -> None:
    """After a good day: what is long ago does not thin it out."""
    trial, rng, looked, bad = Trial(VERSION, 0.0), random.Random(3), 0, 0
    for now, part, outcome, seconds in _requests(World(), rng):
        if now > 6000 and part.chosen:
            bad += 1
            outcome = "error" if rng.random() < 0.1 else outcome
        trial.record(part, outcome, seconds, 50, now, stream=True)
        if int(now) > looked:
            looked = int(now)
            if trial.due() and trial.look() is not None:
                assert now > 6000
                break
    assert bad < 600, "of 9,000 in the window and 60,000 in all"


def test_memory_is_bounded_and_little_traffic_is_still_judged() -> None:
    trial, rng = Trial(VERSION, 0.0), random.Random(5)
    many = 3 * SLOTS * SLOT_REQUESTS * 10
    for n in range(many):
        chosen = n % 10 == 0
        part = _part(chosen, rng.randrange(256), finish="stop", first_s=0.2)
        trial.record(part, "ok", 1.0, rng.randrange(1, 10**6), 60.0 * n, stream=n % 3 == 0)  # one a minute
    assert len(trial._slots) == SLOTS
    assert min(slot.canary for slot in list(trial._slots)[:-1]) >= 1
    assert all(len(arm.before.seconds) + len(arm.recent.seconds) <= 2 * 32 * 23 for arm in trial._arms)
    assert trial.due()
    assert trial.figures(trial.rules)["canary"]["requests"] == many // 10


def test_percent_100_leaves_nothing_to_compare_with() -> None:
    trial = Trial(VERSION, 0.0)
    for n in range(60):
        trial.record(_part(True, n), "error" if n % 2 else "ok", 1.0, 5, n / 10, stream=False)
    assert trial.due()
    assert trial.look() is None
    assert trial.figures(trial.rules)["standing"] == "nothing is compared yet: 0 of 50 live requests"
    for n in range(60):
        trial.record(_part(True, n), "error", 1.0, 5, n / 10, stream=False)
    verdict = trial.look()
    assert verdict is not None
    assert "are too few to compare with" in verdict.sentence


# What counts as what ------------------------------------------------------------------------------------------


class _Registry:
    """The part of the service that the loop asks: a real one is in test_canary_e2e.py."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str, str | None]] = []
        self.since = 1.0
        self.away = False
        self.first = True  # nobody else has ended it

    async def show(self, name: str) -> Adapter:
        if self.away:
            raise Unavailable("The database is away.")
        return Adapter(name, "0" * 12, None, (), 0.0, 0.0, Canary(VERSION, 10, self.since, Rules(min_requests=5)))

    async def end_canary(self, name: str, *, by: str, why: str, only: str | None, since: float | None) -> bool:
        self.ended.append((by, why, only))
        return self.first and since == self.since


def _snapshot(serial: int, *names: str) -> Snapshot:
    both = {
        name: Target(name, f"{name}@0", "0" * 12, canary=Target(name, f"{name}@1", VERSION), canary_percent=10)
        for name in names
    }
    return Snapshot(serial, "base", {}, both, {}, both)


OUTCOMES = [
    ("200", "", "ok"),
    ("499", "", "left"),
    ("400", "invalid_value", "refused"),
    ("429", "rate_limit_exceeded", "refused"),
    ("503", "overloaded", "refused"),
    ("503", "shutting_down", "refused"),
    ("502", "upstream_unreachable", "refused"),
    ("500", "internal_error", "refused"),
    *[("502", fault, "error") for fault in sorted(FAULTS)],
]


def test_whose_fault_it_was() -> None:
    metrics = Metrics()
    canaries = Canaries(_Registry(), metrics, lambda: 0.0)
    canaries.follow(_snapshot(1, "support"))
    for code, error, _ in OUTCOMES:
        for chosen in (False, True):
            canaries.observe(_part(chosen, error=error), code, 1.0, 5, False)
    wanted = {outcome: sum(o == outcome for _, _, o in OUTCOMES) for outcome in ("ok", "left", "refused", "error")}
    seen = canaries.figures("support", TRYING)
    for arm in ("live", "canary"):
        assert {outcome: metrics.canaries.requests["support", arm, outcome] for outcome in wanted} == wanted
        assert (seen[arm]["requests"], seen[arm]["errors"]) == (1 + len(FAULTS), len(FAULTS))
        assert (seen[arm]["left"], seen[arm]["refused"]) == (1, wanted["refused"])


def test_counts_go_with_their_canary() -> None:
    canaries = Canaries(_Registry(), Metrics(), lambda: 0.0)
    canaries.observe(_part(True), "200", 1.0, 5, False)  # of before the first snapshot
    canaries.follow(_snapshot(1, "support"))
    canaries.observe(_part(True), "200", 1.0, 5, False)
    canaries.follow(_snapshot(2, "support", "other"))
    assert canaries.figures("support", TRYING)["canary"]["requests"] == 1
    assert canaries.figures("support", replace(TRYING, version="2" * 12))["canary"]["requests"] == 0
    canaries.follow(_snapshot(3, "other"))
    canaries.observe(_part(True), "200", 1.0, 5, False)  # was on its way when the canary ended
    canaries.follow(_snapshot(4, "support"))
    assert canaries.figures("support", TRYING)["canary"]["requests"] == 0


async def test_a_canary_that_began_anew_is_counted_anew() -> None:
    registry = _Registry()
    canaries = Canaries(registry, Metrics(), lambda: 0.0)
    canaries.follow(_snapshot(1, "support"))
    for n in range(60):
        canaries.observe(_part(n % 2 == 0, n, error="upstream_error"), "502" if n % 2 == 0 else "200", 1.0, 5, False)
    registry.since = 2.0
    await canaries.judge_all()
    assert len(registry.ended) == 1, "thirty of thirty against none"
    assert registry.ended[0][0] == "gateway"
    assert registry.ended[0][2] == VERSION
    canaries.follow(_snapshot(2, "support"))
    registry.since = 3.0
    await canaries.judge_all()
    assert len(registry.ended) == 1
    assert canaries.figures("support", replace(TRYING, since=3.0))["canary"]["requests"] == 0


async def test_a_verdict_on_the_canary_of_before_does_not_end_the_one_that_another_gateway_began() -> None:
    """Same version, other rules: half a second passes until every gateway knows."""
    registry, metrics = _Registry(), Metrics()
    canaries = Canaries(registry, metrics, lambda: 0.0)
    canaries.follow(_snapshot(1, "support"))
    await canaries.judge_all()  # knows the rules
    for n in range(60):
        canaries.observe(_part(n % 2 == 0, n, error="upstream_error"), "502" if n % 2 == 0 else "200", 1.0, 5, False)
    registry.since = 2.0
    await canaries.judge_all()
    assert len(registry.ended) == 1
    assert set(metrics.canaries.ended.values()) == {0}


async def test_a_registry_that_is_away_is_asked_again_and_who_comes_second_counts_nothing() -> None:
    registry, metrics = _Registry(), Metrics()
    canaries = Canaries(registry, metrics, lambda: 0.0)
    canaries.follow(_snapshot(1, "support", "other"))
    for n in range(60):
        canaries.observe(_part(n % 2 == 0, n, error="upstream_error"), "502" if n % 2 == 0 else "200", 1.0, 5, False)
    registry.away = True
    await canaries.judge_all()
    assert registry.ended == []
    registry.away = registry.first = False
    await canaries.judge_all()
    assert len(registry.ended) == 1
    assert set(metrics.canaries.ended.values()) == {0}


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for n in range(MODEL_LABELS + 30):
        metrics.canaries.add(f"name-{n}", "live", "ok")
    metrics.canaries.percent = {"name-1": 10.0, f"name-{MODEL_LABELS + 1}": 20.0}
    page = metrics.render().decode()
    assert 'loragate_canary_requests_total{arm="live",model="other",outcome="ok"} 30.0' in page
    assert page.count("loragate_canary_requests_total{") == MODEL_LABELS + 1
    assert page.count("loragate_canary_percent{") == 1
