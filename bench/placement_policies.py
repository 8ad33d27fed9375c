"""How routers choose a replica for an adapter: what others do, and ours with adapters/placement.py.

Knows the simulated fleet of bench/placement_fleet.py only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence

from adapters.placement import EMPTY, NEAR, Plan, home, place, relief, rendezvous
from bench.placement_fleet import Fleet, Policy, Replica, Request
from gateway.demand import AHEAD, FORGOTTEN, HALF_S, TURN_S

NOTHING: frozenset[str] = frozenset()
BOUND = 1.25  # times the mean of outstanding requests


class Plain:
    """Moves nothing by itself and spares nothing from being put out."""

    def __init__(self) -> None:
        self._rng = random.Random(7)

    def tick(self, fleet: Fleet) -> None:
        return

    def spared(self, replica: Replica) -> Collection[str]:
        return NOTHING

    def idlest(self, replicas: Sequence[Replica]) -> Replica:
        """The least outstanding; equal ones by chance."""
        least = min(replica.outstanding for replica in replicas)
        return self._rng.choice([replica for replica in replicas if replica.outstanding == least])


class Random(Plain):
    def pick(self, fleet: Fleet, request: Request) -> Replica:
        return self._rng.choice(fleet.alive)


class LeastLoaded(Plain):
    """Whatever is loaded where."""

    def pick(self, fleet: Fleet, request: Request) -> Replica:
        return self.idlest(fleet.alive)


class Bounded(Plain):
    """The first in hash order that is below the bound."""

    def pick(self, fleet: Fleet, request: Request) -> Replica:
        by_url = {replica.url: replica for replica in fleet.alive}
        bound = bound_of(fleet)
        order = [by_url[url] for url in rendezvous(request.name, tuple(by_url))]
        return next(replica for replica in order if replica.outstanding < bound)


class Resident(Plain):
    """Least outstanding of those that have it; else of all."""

    def pick(self, fleet: Fleet, request: Request) -> Replica:
        return self.idlest(fleet.where.get(request.name) or fleet.alive)


class ResidentBounded(Plain):
    """Least outstanding of those that have it and are below the bound; else of all."""

    def pick(self, fleet: Fleet, request: Request) -> Replica:
        bound = bound_of(fleet)
        return self.idlest([r for r in fleet.where.get(request.name, ()) if r.outstanding < bound] or fleet.alive)


def bound_of(fleet: Fleet) -> int:
    return math.ceil(BOUND * (sum(replica.outstanding for replica in fleet.alive) + 1) / len(fleet.alive))


class Placed(Plain):
    """Ours: least outstanding of those that have it; else where there is room, homes first.

    Every TURN_S a plan for the demand so far. What it holds for a replica is put out last; what is asked for often is
    brought to all its homes ahead, and the busiest name of an overloaded replica to one more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plan: Plan = EMPTY
        self._demand: dict[str, float] = {}
        self._asked: dict[str, int] = {}
        self._planned: dict[str, set[str]] = {}
        self._turned_at = 0.0

    def pick(self, fleet: Fleet, request: Request) -> Replica:
        self._asked[request.name] = self._asked.get(request.name, 0) + 1
        have = fleet.where.get(request.name)
        if have:
            return self.idlest(have)
        by_url = {replica.url: replica for replica in fleet.alive}
        homes = [by_url[url] for url in self.plan.homes.get(request.name, ()) if url in by_url]
        near = homes or [by_url[url] for url in home(self.plan, request.name, tuple(by_url))[:NEAR]]
        return min(near, key=lambda r: (r.room(fleet.shape.slots), len(r.waiting), r.outstanding))

    def spared(self, replica: Replica) -> Collection[str]:
        return self._planned.get(replica.url, NOTHING)

    def tick(self, fleet: Fleet) -> None:
        if fleet.now < self._turned_at + TURN_S:
            return
        self._turned_at = fleet.now
        self._follow()
        by_url = {replica.url: replica for replica in fleet.alive}
        self.plan = place(self._demand, dict.fromkeys(by_url, fleet.shape.slots), before=self.plan)
        self._planned = {url: set() for url in by_url}
        for name, homes in self.plan.homes.items():
            for url in homes:
                self._planned[url].add(name)
        ahead = relief(
            self.plan,
            {url: replica.outstanding for url, replica in by_url.items()},
            {url: replica.busy for url, replica in by_url.items()},
            {url: replica.resident for url, replica in by_url.items()},
        )
        for url, replica in by_url.items():
            missing = [n for n in self._planned[url] if self._demand[n] >= AHEAD and n not in replica.resident]
            if missing:
                ahead.append((max(missing, key=lambda name: (self._demand[name], name)), url))
        for name, url in ahead:  # what requests wait for goes first
            if not by_url[url].waiting and by_url[url].room(fleet.shape.slots) < 2:
                fleet.prefetch(by_url[url], name)

    def _follow(self) -> None:
        """Requests per second, smoothed."""
        keep, asked, self._asked = 0.5 ** (TURN_S / HALF_S), self._asked, {}
        self._demand = {name: rate * keep for name, rate in self._demand.items() if rate * keep > FORGOTTEN}
        for name, count in asked.items():
            self._demand[name] = self._demand.get(name, 0.0) + (1 - keep) * count / TURN_S


OURS = "loragate"
POLICIES: dict[str, Callable[[], Policy]] = {
    "random": Random,
    "least outstanding": LeastLoaded,
    "consistent hashing, bounded loads": Bounded,
    "resident first": Resident,
    "resident first, bounded loads": ResidentBounded,
    OURS: Placed,
}
