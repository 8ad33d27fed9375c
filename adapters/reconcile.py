"""The only bridge between what is wanted (the registry) and what is (the engines): one level-triggered loop each.

Never unloads what it does not know, unless the registry once held it and it was removed. Publishes what it
sees as an immutable mapping, swapped whole.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from adapters import revision, store
from adapters.db import Database
from adapters.engine import EngineClient, EngineModel
from adapters.errors import Conflict, EngineError, NotProven, Saturated, ServiceError, Unavailable
from adapters.gateways import Alone, Gateways
from adapters.replica import Prove, Replica, trusting
from adapters.traffic import NoTraffic, Traffic
from adapters.types import ReplicaState, ReplicaView, WantedVersion

_log = logging.getLogger(__name__)

Outcomes = dict[str, ServiceError | None]  # URL → why it was not done there


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the registry says, as far as one engine is concerned."""

    load: tuple[WantedVersion, ...]  # most wanted first
    known: frozenset[str]  # of what is resident or failed there: in the registry
    unload: frozenset[str]  # of what is resident there: once in the registry, removed since
    pinned: frozenset[str] = frozenset()
    revision: int = 0  # of the registry that says so
    comparable: frozenset[str] = frozenset()  # of what is resident there: what another engine says of it is known


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do at one engine now."""

    load: tuple[str, ...]
    unload: tuple[str, ...]
    foreign: frozenset[str]  # only reported


def plan(
    wanted: Wanted, resident: Collection[str], listed: Collection[str], waiting: Collection[str], base: str | None
) -> Plan:
    """Pure: from what is wanted and what is seen to what to do. `waiting` failed too recently to be tried again."""
    here, there = frozenset(resident), frozenset(listed)
    load = tuple(
        each.engine_name
        for each in wanted.load
        if each.engine_name not in here and each.engine_name not in waiting and each.base in (None, base)
    )
    unload = wanted.unload & there
    return Plan(load, tuple(sorted(unload)), there - wanted.known - unload)


class Reconciler:
    """Runs from `start` to `close`. `residency`: engine URL → what it serves; `on_change` is called after each swap.

    engines: the first ones; others may join, and each may leave.
    """

    def __init__(
        self,
        db: Database,
        engines: Sequence[EngineClient],
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
        traffic: Traffic | None = None,
        prove: Prove = trusting,
        interval_s: float = 5.0,
        preload_max: int = 64,
    ) -> None:
        self._db = db
        self._interval_s = interval_s
        self._preload_max = preload_max
        self._on_change = on_change
        self._clock = clock
        self._prove = prove
        self._traffic = traffic or NoTraffic()
        self.gateways: Gateways = Alone()  # the others on this database, set by whoever finds them
        self._guards: Counter[str] = Counter()  # engine names that are about to answer
        self._replicas = {client.url: self._replica(client) for client in engines}
        self._wakes = {url: asyncio.Event() for url in self._replicas}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._running = False
        self._evictions_gone = 0
        self._pool: EngineModel | None = None
        self._expected: str | None = None  # the base of what is live, where it is not known yet what is served
        self._wanted_count = 0
        self.residency: Mapping[str, ReplicaView] = MappingProxyType({})
        self._publish()

    @property
    def base(self) -> EngineModel | None:
        """The base model of the pool; None until an engine has said."""
        return self._pool

    @property
    def base_names(self) -> frozenset[str]:
        """Every name that some engine gives its base: no adapter may have it."""
        return frozenset().union(*(replica.base_names for replica in self._replicas.values()))

    @property
    def evictions_gone(self) -> int:
        """Adapters that were put out of engines which have left since."""
        return self._evictions_gone

    def start(self) -> None:
        """Begin one loop per engine."""
        self._running = True
        for replica in self._replicas.values():
            self._begin(replica)

    async def close(self) -> None:
        """End the loops and the loads under way."""
        self._running = False
        for url in tuple(self._replicas):
            self._end(url)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def join(self, client: EngineClient) -> None:
        """One engine more, by a URL that none has now. While the loops run it is looked at at once."""
        replica = self._replica(client)
        replica.settled = not self._running
        self._replicas[client.url] = replica
        self._wakes[client.url] = asyncio.Event()
        if self._running:
            self._begin(replica)
        self._publish()

    def leave(self, url: str) -> None:
        """Forget that engine; whoever waits for a load there is told. What it has loaded stays as it is."""
        self._end(url)
        self._evictions_gone += self._replicas.pop(url).evictions
        del self._wakes[url]
        self._publish()

    def wake(self) -> None:
        """The registry changed, or an engine was seen to misbehave: look now instead of at the next interval."""
        for event in self._wakes.values():
            event.set()

    async def probed(self) -> None:
        """Wait until every engine has been asked once (at most its probe timeout after `start`)."""
        await asyncio.gather(*(replica.probed.wait() for replica in self._replicas.values()))

    async def ensure(self, engine_name: str, url: str, *, wait_s: float = 0.0) -> None:
        """Return when `engine_name` is resident at `url`; all who wait share one load.

        wait_s: for room there. Raises Unavailable while the engine is not ready or a failed load is not yet due
        again, Saturated where there is no room, EngineError when this load fails.
        """
        replica, view = self._replicas.get(url), self.residency.get(url)
        if replica is None or view is None:
            raise Unavailable(f"Engine {url} is no longer one of this gateway's.", retry_after_s=2)
        if view.state is not ReplicaState.READY:
            raise Unavailable(f"Engine {url} is {view.state.value}: {view.reason}", retry_after_s=5)
        if engine_name in replica.waiting():
            seconds = max(1, math.ceil(replica.retry_after_s(engine_name)))
            raise Unavailable(
                f"{engine_name} could not be loaded a moment ago: {view.failed[engine_name]}", retry_after_s=seconds
            )
        await replica.load(engine_name, wait_s=wait_s)

    def pin(self, engine_name: str) -> None:
        """From now on it is put out of no engine; the loops read what is pinned only at their next turn."""
        for replica in self._replicas.values():
            replica.pinned |= {engine_name}
        self._publish()
        self.wake()  # a turn that read the registry before that would forget it

    def room(self, url: str) -> int:
        """How dear one more adapter is at `url`: 0 there is room, 1 an idle one has to go, 2 all are in use.

        3: all are pinned or somebody else's, so waiting is in vain.
        """
        replica = self._replicas.get(url)
        return replica.room() if replica is not None else 2

    def freed(self, url: str) -> None:
        """An adapter has become idle at `url`."""
        if url in self._replicas:
            self._replicas[url].freed()

    @contextmanager
    def guarding(self, engine_name: str) -> Iterator[None]:
        """Meanwhile `engine_name` is put out of no engine: it is about to answer."""
        self._guards[engine_name] += 1
        try:
            yield
        finally:
            self._guards[engine_name] -= 1
            if not self._guards[engine_name]:
                del self._guards[engine_name]

    def lost(self, engine_name: str, url: str) -> None:
        """The engine itself said that it does not have it: it was restarted since it was last asked."""
        if url in self._replicas:
            self._replicas[url].lost(engine_name)
            self._wakes[url].set()  # whatever else it had is gone too

    async def load_on(self, engine_name: str, like: str | None = None, *, wait_s: float | None = 0.0) -> Outcomes:
        """Load where it belongs: on every engine that is ready, or, where not all that is wanted fits, on those that
        have `like` and on its own first one. URL → why not, None where it is resident and proven now.

        Where one engine shows what the weights do, those on which they seemed to do nothing are asked once more.
        """
        await self.probed()
        # What was seen some seconds ago does not count here: an engine may have been restarted since.
        await asyncio.gather(*(replica.probe() for replica in self._ready()))
        replicas = self._targets(engine_name, like)
        ends = await self._each(replicas, lambda replica: replica.load(engine_name, wait_s=wait_s))
        held = [replica for replica in replicas if engine_name in replica.resident]
        weak = [replica for replica in held if engine_name in replica.unproven(weak_too=True)]
        # What was listed when it was first looked at has not been asked at all yet.
        again = weak if len(weak) < len(held) else [each for each in held if engine_name in each.unproven()]
        await asyncio.gather(*(replica.prove_again(engine_name) for replica in again))
        for replica in (replica for replica in again if replica.url in ends):
            failure = replica.view().failed.get(engine_name)
            ends[replica.url] = NotProven(failure) if failure is not None else None
        return ends

    async def unload_everywhere(self, engine_name: str) -> Outcomes:
        """Unload from every engine that is ready; URL → why not, None where it is gone. Conflict: it is used there."""
        await self.probed()
        return await self._each(self._ready(), lambda replica: replica.unload(engine_name))

    async def who_lists(self, engine_name: str) -> tuple[str, ...]:
        """Ask every engine that is ready what it lists now; the URLs that list it."""
        ready = self._ready()
        await asyncio.gather(*(replica.probe() for replica in ready))
        return tuple(replica.url for replica in ready if engine_name in replica.listed)

    async def tokenize(self, asked: Mapping[str, Any]) -> tuple[int, ...]:
        """What one ready engine makes of a conversation to the base. Unavailable, InvalidRequest, EngineError."""
        await self.probed()
        for replica in self._ready():
            if replica.base is not None:
                return await replica.client.tokenize({"model": replica.base.id, **asked})
        raise Unavailable("No engine is ready. `loragate status` says why.", retry_after_s=5)

    async def tick(self, url: str) -> None:
        """One turn at one engine: ask, compare with the registry, load and unload what differs. Never raises for it."""
        replica = self._replicas[url]
        if self._pool is None and self._expected is None:
            with suppress(ServiceError):
                self._expected = await self._db.read(store.usual_base)
        await replica.probe()
        view = self.residency.get(url)
        if replica.base is None or view is None or view.state is not ReplicaState.READY:
            return
        listed, failed, weak = replica.listed | replica.elsewhere, replica.failed, replica.unproven(weak_too=True)
        wanted = await self._db.read(lambda conn: self._wanted(conn, listed, failed, weak))
        self._wanted_count = len(wanted.load)
        replica.forget_failures(failed - wanted.known)
        replica.pinned = wanted.pinned
        # What was loaded meanwhile the registry was not asked for.
        todo = plan(wanted, replica.resident, replica.listed & listed, replica.waiting(), replica.base.id)
        replica.disown(todo.foreign | (replica.elsewhere & listed) - wanted.known)
        self._publish()
        for name in todo.unload:
            with suppress(EngineError, Conflict):  # the next turn tries again
                if not self._traffic.in_use(name) and await self.gateways.done_with([name], wanted.revision):
                    await replica.unload(name)
        with suppress(EngineError):
            if not await self.gateways.present():  # what others have in flight is known only as it was
                await replica.trim()
        await self._fill(replica, todo.load)
        for name in sorted(wanted.known & (replica.unproven() | (weak & wanted.comparable))):
            await replica.prove_again(name)
        replica.settled = True
        self._publish()

    async def _fill(self, replica: Replica, names: Sequence[str]) -> None:
        """Load what fits: what is pinned puts others out, the rest takes free places, what belongs here first."""
        urls = [each.url for each in self._ready()]
        if replica.url not in urls:  # it went away just now
            return
        rank = {name: list(self._traffic.homes(name, urls)).index(replica.url) for name in names}
        for name in sorted(names, key=lambda name: (name not in replica.pinned, rank[name])):
            with suppress(EngineError, Saturated):  # kept as the replica's `failed`, tried again with back-off
                if name in replica.pinned or not replica.room():
                    await replica.load(name, wait_s=0.0 if name in replica.pinned else None)

    def _begin(self, replica: Replica) -> None:
        self._tasks[replica.url] = asyncio.create_task(self._watch(replica), name=f"reconcile {replica.url}")

    def _end(self, url: str) -> None:
        """End its loop, then its loads; `close` waits for both."""

        async def end(task: asyncio.Task[None] | None, replica: Replica) -> None:
            if task is not None:
                await asyncio.wait([task])
            await replica.close()

        task = self._tasks.pop(url, None)
        if task is not None:
            task.cancel()
        ending = asyncio.create_task(end(task, self._replicas[url]), name=f"leave {url}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _watch(self, replica: Replica) -> None:
        wake = self._wakes[replica.url]
        while True:
            wake.clear()
            try:
                await self.tick(replica.url)
            except ServiceError as exc:
                _log.warning("reconcile of %s put off: %s", replica.url, exc.message)
            except Exception as exc:  # whatever it was, the next turn may see it mended
                _log.error("reconcile of %s failed: %s", replica.url, type(exc).__name__, exc_info=exc)
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
                async with asyncio.timeout(self._interval_s):
                    await wake.wait()

    def _wanted(
        self, conn: sa.Connection, resident: frozenset[str], failed: frozenset[str], weak: frozenset[str]
    ) -> Wanted:
        return Wanted(
            load=store.wanted(conn, self._preload_max),
            known=store.known(conn, resident | failed),
            unload=store.removed(conn, resident),
            pinned=store.pinned(conn),
            revision=revision.read(conn),
            comparable=store.with_proof(conn, weak),
        )

    def _replica(self, client: EngineClient) -> Replica:
        return Replica(client, self._clock, self._publish, self._traffic, self._prove, self._guards.__contains__)

    def _ready(self) -> list[Replica]:
        return [replica for url, replica in self._replicas.items() if self.residency[url].state is ReplicaState.READY]

    def _targets(self, engine_name: str, like: str | None) -> list[Replica]:
        ready = self._ready()
        if all(each.client.capacity is None or self._wanted_count < each.client.capacity for each in ready):
            return ready
        first = self._traffic.homes(engine_name, [each.url for each in ready])[0]
        return [each for each in ready if each.url == first or (like is not None and like in each.resident)]

    async def _each(self, replicas: Sequence[Replica], move: Callable[[Replica], Awaitable[None]]) -> Outcomes:
        ends = await asyncio.gather(*(_outcome(move(replica)) for replica in replicas))
        return {  # what has left meanwhile need not have it
            replica.url: end
            for replica, end in zip(replicas, ends, strict=True)
            if self._replicas.get(replica.url) is replica
        }

    def _publish(self) -> None:
        self._judge()
        views = {url: replica.view() for url, replica in self._replicas.items()}
        if views != self.residency:
            self.residency = MappingProxyType(views)
            self._on_change()

    def _judge(self) -> None:
        """Hold the pool to one base: the one it has until all engines are seen to serve others.

        One that is away may come back with it. At first the one that the live adapters were made for, unless no engine
        that can be asked serves it.
        """
        reachable = [replica for replica in self._replicas.values() if replica.reachable and replica.base is not None]
        first = [replica for replica in reachable if replica.base and replica.base.id == self._expected]
        asked = self._expected is None or all(replica.probed.is_set() for replica in self._replicas.values())
        if self._pool is None:
            chosen = first or (reachable if asked else [])
            self._pool = chosen[0].base if chosen else None
        elif len(reachable) == len(self._replicas) and not any(_same(each.base, self._pool) for each in reachable):
            self._pool = reachable[0].base if reachable else self._pool
        for replica in reachable:
            replica.refusal = "" if _same(replica.base, self._pool) else _differs(replica.base, self._pool)


async def _outcome(move: Awaitable[None]) -> ServiceError | None:
    try:
        await move
    except ServiceError as exc:
        return exc
    return None


def _same(one: EngineModel | None, other: EngineModel | None) -> bool:
    return one is not None and other is not None and (one.id, one.max_model_len) == (other.id, other.max_model_len)


def _differs(one: EngineModel | None, pool: EngineModel | None) -> str:
    served = f"{one.id} (length {one.max_model_len})" if one else "nothing"
    wanted = f"{pool.id} (length {pool.max_model_len})" if pool else "nothing"
    return f"It serves {served}, the other engines serve {wanted}. Start all engines of a pool with the same base."
