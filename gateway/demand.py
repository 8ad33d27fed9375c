"""Follows what adapters are asked for: where each should be held, and what goes there before it is asked for.

Reads the counts that routing keeps; gives the loader its plan. Must not know requests or what an adapter is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from adapters import placement
from adapters.errors import ServiceError
from adapters.placement import Plan
from adapters.reconcile import Reconciler
from adapters.types import ReplicaState, ReplicaView
from gateway.loading import Loader
from gateway.metrics import Metrics
from gateway.v1.routing import Fleet

log = logging.getLogger("loragate.demand")

TURN_S = 1.0
HALF_S = 30.0  # a rate forgets half of itself in so long
WINDOW_S = 300.0  # what was asked for within it is the working set
FORGOTTEN = 1e-3  # requests a second; one request is below it after about four minutes
AHEAD = 0.1  # requests a second from which on an adapter is brought to its further homes before it is asked for there


@dataclass(frozen=True, slots=True)
class Demanded:
    """What was asked for in the last minutes."""

    rates: Mapping[str, float]  # engine name → requests a second, smoothed
    asked: Set[str]  # engine names, within WINDOW_S
    requests: int  # of adapters, within WINDOW_S
    misses: int  # of those, that waited for a load
    loads: int  # within WINDOW_S, by requests
    load_s: float | None  # mean of those
    evictions: int  # within WINDOW_S


class Demand:
    """One loop for the life of the process."""

    def __init__(
        self, fleet: Fleet, loader: Loader, reconciler: Reconciler, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._loader = loader
        self._reconciler = reconciler
        self._metrics = metrics
        self._clock = clock
        self._rates: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._turned_at = clock()
        self._asked = 0
        self._totals: deque[tuple[float, _Totals]] = deque([(self._turned_at, self._now())])
        self._task: asyncio.Task[None] | None = None
        self._ahead: dict[str, asyncio.Task[None]] = {}  # url → the one load ahead of demand there

    async def __aenter__(self) -> Demand:
        self._task = asyncio.create_task(self._follow(), name="demand")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._task, *self._ahead.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def seen(self) -> Demanded:
        """The last minutes, up to the last turn."""
        before, now = self._totals[0][1], self._totals[-1][1]
        loads = now.loads - before.loads
        return Demanded(
            rates=self._rates,
            asked=self._asked_at.keys(),
            requests=now.requests - before.requests,
            misses=now.misses - before.misses,
            loads=loads,
            load_s=(now.load_s - before.load_s) / loads if loads else None,
            evictions=now.evictions - before.evictions,
        )

    async def turn(self) -> None:
        """Count what was asked for since the last turn, place anew, and bring what is missing."""
        self._count()
        self._ahead = {url: task for url, task in self._ahead.items() if not task.done()}  # engines come and go
        ready = {u: v for u, v in self._reconciler.residency.items() if v.state is ReplicaState.READY}
        if len(ready) < 2:
            self._loader.plan = placement.EMPTY
            return
        pinned = frozenset[str]().union(*(view.pinned for view in ready.values()))
        demand = self._rates  # what nobody asks for has no home: it stays where it is until its place is needed
        slots = {url: _places(view, len(demand), len(pinned)) for url, view in ready.items()}
        # On a thread: 10,000 adapters and 64 engines take 20 ms, which streams should not notice.
        self._loader.plan = await asyncio.to_thread(placement.place, demand, slots, pinned, self._loader.plan)
        for url, view in ready.items():
            self._bring_ahead(url, view, self._loader.plan)
        self._relieve(ready)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            try:
                await self.turn()
            except Exception as error:  # routing goes on with the last plan
                log.error("the placement could not be planned: %s", type(error).__name__, exc_info=error)

    def _count(self) -> None:
        now = self._clock()
        passed = max(now - self._turned_at, 1e-6)
        self._turned_at = now
        asked, self._fleet.asked = self._fleet.asked, {}
        keep = 0.5 ** (passed / HALF_S)
        rates = {name: rate * keep for name, rate in self._rates.items() if rate * keep > FORGOTTEN or name in asked}
        for name, count in asked.items():
            rates[name] = rates.get(name, 0.0) + (1.0 - keep) * count / passed
            self._asked_at[name] = now
            self._asked += count
        self._rates = rates
        for name in [name for name, at in self._asked_at.items() if at < now - WINDOW_S]:
            del self._asked_at[name]
        self._totals.append((now, self._now()))
        while len(self._totals) > 2 and self._totals[0][0] < now - WINDOW_S:
            self._totals.popleft()

    def _now(self) -> _Totals:
        loads = self._metrics.adapter_load_seconds
        evictions = sum(view.evictions for view in self._reconciler.residency.values())
        evictions += self._reconciler.evictions_gone
        return _Totals(self._asked, self._metrics.adapter_misses, sum(loads.counts), loads.total, evictions)

    def _bring_ahead(self, url: str, view: ReplicaView, plan: Plan) -> None:
        """One load at a time, of the busiest that is missing, and only where nothing that belongs there makes room."""
        task = self._ahead.get(url)
        if task is not None and not task.done():
            return
        here = view.resident | view.failed.keys()
        missing = [
            name
            for name, rate in self._rates.items()
            if rate >= AHEAD and name not in here and url in plan.homes.get(name, ())
        ]
        spare = any(url not in plan.homes.get(name, ()) for name in view.resident - view.foreign)
        if missing and (spare or self._reconciler.room(url) == 0):
            name = max(missing, key=lambda each: (self._rates[each], each))
            self._ahead[url] = asyncio.create_task(self._bring(name, url), name=f"ahead {url}")

    def _relieve(self, ready: Mapping[str, ReplicaView]) -> None:
        """What is asked for suddenly goes to one more engine before the rates show it."""
        replicas = [replica for replica in self._fleet.replicas if replica.url in ready]
        for name, url in placement.relief(
            self._loader.plan,
            {replica.url: replica.outstanding for replica in replicas},
            {replica.url: replica.busy for replica in replicas},
            {replica.url: replica.resident for replica in replicas},
        ):
            task = self._ahead.get(url)
            if (task is None or task.done()) and self._reconciler.room(url) < 2:
                self._ahead[url] = asyncio.create_task(self._bring(name, url), name=f"relief {url}")

    async def _bring(self, name: str, url: str) -> None:
        try:
            await self._reconciler.ensure(name, url)
        except ServiceError as error:
            log.info("%s was not brought to %s ahead of demand: %s", name, url, error.message)
            self._rates = {each: rate for each, rate in self._rates.items() if each != name}  # removed, perhaps


@dataclass(frozen=True, slots=True)
class _Totals:
    """Counts since the process began."""

    requests: int
    misses: int
    loads: int
    load_s: float
    evictions: int


def _places(view: ReplicaView, most: int, pinned: int) -> int:
    """How many names may be held at one engine beside pinned ones."""
    if view.capacity is None:
        return most
    return max(0, view.capacity - len(view.foreign) - pinned)
