"""A fleet of engines, simulated: slots for adapters, seats for sequences, loads one at a time, and requests by Zipf.

Pure arithmetic with fixed seeds; no server, no clock. Must not know how a replica is chosen.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

WINDOW_S = 10.0  # over which a replica's load is averaged


@dataclass(frozen=True, slots=True)
class Shape:
    """What is simulated. Times in seconds."""

    adapters: int = 10_000
    replicas: int = 64
    slots: int = 16
    seats: int = 16  # sequences that a replica decodes at once
    rate: float = 256.0  # requests per second in the whole fleet: half of the seats on average
    service_s: float = 2.0  # mean of an exponential: 128 tokens at 16 ms
    load_s: float = 0.2  # one at a time per replica: a 7B model's rank-16 adapter from local disk
    skew: float = 1.0  # Zipf's exponent
    drift: float = 0.05  # share of the ranks that change hands each minute
    warm_s: float = 120.0  # not measured
    seconds: float = 240.0
    losses: tuple[float, ...] = ()  # when a replica dies; it is back, empty, LOSS_S later
    seed: int = 1


LOSS_S = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    name: str
    service_s: float


def requests(shape: Shape) -> Iterator[Request]:
    """Poisson arrivals; each minute a share of the ranks is shuffled among itself."""
    rng = random.Random(shape.seed)
    ranked = [f"adapter-{number:05d}@{number:012x}" for number in range(shape.adapters)]
    rng.shuffle(ranked)
    weights = list(itertools.accumulate((rank + 1) ** -shape.skew for rank in range(shape.adapters)))
    now, shuffled = 0.0, 0
    while (now := now + rng.expovariate(shape.rate)) < shape.warm_s + shape.seconds:
        while shuffled < now // 60:
            shuffled += 1
            places = rng.sample(range(shape.adapters), int(shape.adapters * shape.drift))
            names = [ranked[place] for place in places]
            rng.shuffle(names)
            for place, name in zip(places, names, strict=True):
                ranked[place] = name
        yield Request(now, rng.choices(ranked, cum_weights=weights)[0], rng.expovariate(1 / shape.service_s))


@dataclass(slots=True, eq=False)
class Replica:
    """One engine: so many slots for adapters, so many sequences at once, one load at a time."""

    url: str
    number: int
    alive: bool = True
    life: int = 0  # grows when it dies, so that what was under way in it is void
    resident: OrderedDict[str, int] = field(default_factory=OrderedDict)  # least recently used first → in flight
    waiting: OrderedDict[str, list[Request]] = field(default_factory=OrderedDict)  # for their adapter
    loading: str | None = None
    queue: deque[Request] = field(default_factory=deque)  # for a seat
    running: dict[int, Request] = field(default_factory=dict)
    outstanding: int = 0
    area: float = 0.0  # outstanding × seconds in this window
    since: float = 0.0

    @property
    def busy(self) -> dict[str, int]:
        return {name: count for name, count in self.resident.items() if count}

    def room(self, slots: int) -> int:
        """0: a slot is free, 1: something can go, 2: everything here is in use."""
        taken = len(self.resident) + len(self.waiting)
        if taken < slots:
            return 0
        idle = sum(not busy for busy in self.resident.values())
        return 1 if idle > len(self.waiting) else 2


class Policy(Protocol):
    """Chooses a replica for each request; may move adapters by itself once a second."""

    def pick(self, fleet: Fleet, request: Request) -> Replica: ...

    def tick(self, fleet: Fleet) -> None: ...

    def spared(self, replica: Replica) -> Collection[str]: ...


class Fleet:
    """All replicas, the events to come and what is counted."""

    def __init__(self, shape: Shape, policy: Policy) -> None:
        self.shape = shape
        self.policy = policy
        self.replicas = [Replica(f"http://10.0.{n // 8}.{n % 8}:8000", n) for n in range(shape.replicas)]
        self.where: dict[str, list[Replica]] = {}  # resident or on its way there
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.delays: list[float] = []
        self.loads = self.hits = self.asked = 0
        self.loads_at: list[float] = []
        self.worst: list[float] = []  # busiest replica ÷ mean, of each window

    @property
    def alive(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.alive]

    @property
    def measured(self) -> bool:
        return self.now >= self.shape.warm_s

    def after(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.serial), act))

    def run(self) -> None:
        """Everything until the last arrival; what is unfinished then is not counted."""
        self.after(1.0, self._tick)
        self.after(WINDOW_S, self._window)
        for turn, at in enumerate(self.shape.losses):
            self.after(at, lambda turn=turn: self.lose(self.replicas[turn * 7 % len(self.replicas)]))  # type: ignore[misc]
        for request in requests(self.shape):
            while self.events[0][0] <= request.at:
                self.now, _, act = heapq.heappop(self.events)
                act()
            self.now = request.at
            self.submit(request)

    def _tick(self) -> None:
        self.policy.tick(self)
        self.after(1.0, self._tick)

    def _window(self) -> None:
        areas = []
        for replica in self.replicas:
            self._count(replica, 0)
            areas.append(replica.area)
            replica.area = 0.0
        if self.measured:
            self.worst.append(max(areas) * len(areas) / sum(areas))
        self.after(WINDOW_S, self._window)

    def _count(self, replica: Replica, change: int) -> None:
        replica.area += replica.outstanding * (self.now - replica.since)
        replica.since = self.now
        replica.outstanding += change

    def submit(self, request: Request) -> None:
        replica = self.policy.pick(self, request)
        hit = request.name in replica.resident
        if self.measured:
            self.asked += 1
            self.hits += hit
        self._count(replica, 1)
        if hit:
            self._admit(replica, request)
        else:
            self.fetch(replica, request.name).append(request)
            self._load(replica)

    def fetch(self, replica: Replica, name: str) -> list[Request]:
        """Who waits for `name` there; it is on its way from now on."""
        if name not in replica.waiting:
            replica.waiting[name] = []
            self.where.setdefault(name, []).append(replica)
        return replica.waiting[name]

    def prefetch(self, replica: Replica, name: str) -> None:
        if name not in replica.resident:
            self.fetch(replica, name)
            self._load(replica)

    def _admit(self, replica: Replica, request: Request) -> None:
        replica.resident[request.name] += 1
        replica.resident.move_to_end(request.name)
        if len(replica.running) < self.shape.seats:
            self._start(replica, request)
        else:
            replica.queue.append(request)

    def _start(self, replica: Replica, request: Request) -> None:
        if self.measured:
            self.delays.append(self.now - request.at)
        ticket = next(self.serial)
        replica.running[ticket] = request
        self.after(request.service_s, self._guarded(replica, lambda: self._finish(replica, ticket)))

    def _guarded(self, replica: Replica, act: Callable[[], None]) -> Callable[[], None]:
        life = replica.life
        return lambda: act() if replica.life == life else None

    def _finish(self, replica: Replica, ticket: int) -> None:
        replica.resident[replica.running.pop(ticket).name] -= 1
        self._count(replica, -1)
        if replica.queue:
            self._start(replica, replica.queue.popleft())
        self._load(replica)

    def _load(self, replica: Replica) -> None:
        """Begin the next load if none is under way and there is, or can be made, a slot for it."""
        if replica.loading is not None or not replica.waiting:
            return
        if len(replica.resident) >= self.shape.slots and not self._evict(replica):
            return
        name = next((name for name, asked in replica.waiting.items() if asked), next(iter(replica.waiting)))
        replica.loading = name
        if self.measured:
            self.loads += 1
        self.loads_at.append(self.now)
        self.after(self.shape.load_s, self._guarded(replica, lambda: self._loaded(replica, name)))

    def _evict(self, replica: Replica) -> bool:
        idle = [name for name, busy in replica.resident.items() if not busy]
        if not idle:
            return False
        spared = self.policy.spared(replica)
        victim = next((name for name in idle if name not in spared), idle[0])
        del replica.resident[victim]
        self.where[victim].remove(replica)
        return True

    def _loaded(self, replica: Replica, name: str) -> None:
        replica.loading = None
        replica.resident[name] = 0
        for request in replica.waiting.pop(name):
            self._admit(replica, request)
        self._load(replica)

    def lose(self, replica: Replica) -> None:
        """It dies; what it had in flight is sent again to others; LOSS_S later it is back and empty."""
        replica.alive = False
        replica.life += 1
        for name in (*replica.resident, *replica.waiting):
            self.where[name].remove(replica)
        orphans = [*replica.running.values(), *replica.queue, *itertools.chain(*replica.waiting.values())]
        self._count(replica, -replica.outstanding)
        for held in (replica.resident, replica.waiting, replica.queue, replica.running):
            held.clear()
        replica.loading = None
        for request in orphans:
            self.submit(request)
        self.after(LOSS_S, lambda: setattr(replica, "alive", True))


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
