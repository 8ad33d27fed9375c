"""What is run: the loads, and the interleaved rounds in which every peer takes its turn.

Owns the order of things and the figures of one turn; how figures become tables is the report's business.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.figures import Sample
from bench.load import LoadFailed, Outcome, Plan, chat_request, run_load
from bench.measure import cpu_seconds, memory
from bench.mock_engine import MODEL
from bench.peers import PEERS, Place, Running, start_mock


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load under a name that the report knows."""

    name: str
    plan: Plan
    streaming: bool = False


SCENARIOS = (
    Scenario("c1", Plan(1, seconds=1.0)),
    Scenario("c16", Plan(16, seconds=1.5)),
    Scenario("c64", Plan(64, seconds=1.5)),
    Scenario("rate500", Plan(64, seconds=2.0, rate=500)),
    Scenario("rate2000", Plan(64, seconds=2.0, rate=2000)),
    Scenario("streams", Plan(64, streams=128), streaming=True),
)
WARM_UP = Scenario("warm-up", Plan(16, seconds=0.5))


@dataclass(slots=True)
class SideBySide:
    """Raw figures: samples[scenario][peer] is a list with one entry a round, empty where it could not be run."""

    rounds: int
    peers: list[str]
    starts: dict[str, list[float]]
    memory: dict[str, dict[str, float]]
    samples: dict[str, dict[str, list[Sample]]]


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of unsorted `values`; `share` between 0 and 1."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def figures(outcome: Outcome) -> Sample:
    """One turn in numbers: microseconds, requests per second, counts."""
    found: Sample = {"completed": outcome.completed, "failed": outcome.failed}
    if not outcome.completed:
        return found
    found["rps"] = outcome.completed / outcome.seconds
    found["cpu_us"] = outcome.peer_cpu_s / outcome.completed * 1e6
    found["generator_us"] = outcome.own_cpu_s / outcome.completed * 1e6
    spreads = {"latency": outcome.latencies, "first": outcome.first_token, "delay": outcome.token_delay}
    for name, values in spreads.items():
        if values:
            found[f"{name}_p50"] = percentile(values, 0.5) * 1e6
            found[f"{name}_p99"] = percentile(values, 0.99) * 1e6
    if outcome.tokens:
        found["tokens"] = outcome.tokens
        found["token_cpu_us"] = outcome.peer_cpu_s / outcome.tokens * 1e6
        found["tokens_per_s"] = outcome.tokens / outcome.seconds
    return found


def turn(peer: Running, scenario: Scenario, requests: tuple[bytes, ...] | None = None) -> Sample:
    """One peer's turn at one scenario; a load that could not be run gives no figures but a failure."""
    if requests is None:
        requests = (peer.endpoint.request(chat_request(MODEL, stream=scenario.streaming)),)
    cpu = partial(cpu_seconds, peer.process.pid)
    try:
        return figures(run_load(peer.endpoint, requests, scenario.plan, cpu=cpu, streaming=scenario.streaming))
    except LoadFailed as exc:
        print(f"  {peer.name}, {scenario.name}: {exc}", file=sys.stderr)
        return {"failed": 1}


def shortened(scenarios: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """The same scenarios in a tenth of the time, for tests and first looks."""
    return tuple(
        replace(each, plan=replace(each.plan, seconds=each.plan.seconds / 10, streams=each.plan.streams and 64))
        for each in scenarios
    )


def side_by_side(
    names: Sequence[str], place: Place, *, rounds: int, starts: int, scenarios: Sequence[Scenario]
) -> SideBySide:
    """Start every peer over one mock engine and let them take turns, the order moving on by one each round."""
    with contextlib.ExitStack() as stack:
        mock = start_mock(place)
        stack.callback(mock.stop)
        found = SideBySide(rounds, list(names), {name: [] for name in names}, {}, {})
        peers = [mock]
        for number in range(starts):
            for name in names:
                peer = PEERS[name](place, mock.endpoint.port)
                found.starts[name].append(peer.ready_s)
                print(f"  {name} answered after {peer.ready_s:.2f} s", file=sys.stderr)
                if number < starts - 1:
                    peer.stop()
                else:
                    stack.callback(peer.stop)
                    peers.append(peer)
        reach = {peer.name: turn(peer, WARM_UP).get("rps", 0.0) for peer in peers}  # and warms everybody up
        for number in range(rounds):
            began = time.monotonic()
            for scenario in scenarios:
                for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                    too_fast = (scenario.plan.rate or 0.0) > 0.8 * reach[peer.name]
                    sample = {} if too_fast else turn(peer, scenario)
                    found.samples.setdefault(scenario.name, {}).setdefault(peer.name, []).append(sample)
            print(f"  round {number + 1} of {rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        for peer in peers:
            used = memory(peer.process.pid)
            found.memory[peer.name] = {"rss_mb": used.rss_mb, "pss_mb": used.pss_mb}
        return found
