"""What the reconciler sees of the engines, told to the data plane; what the data plane misses, asked of the reconciler.

The only bridge between adapters' view of replicas and routing's, in both directions: it is also the `Traffic` that the
room below may ask about. Must not know requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from adapters import placement
from adapters.errors import Saturated, ServiceError
from adapters.placement import Plan
from adapters.reconcile import Reconciler
from adapters.replica import PATIENCE_S
from adapters.traffic import ANY
from adapters.types import ReplicaState as Seen
from adapters.types import ReplicaView
from gateway.errors import ModelLoading
from gateway.metrics import Metrics
from gateway.v1.proxy import UpstreamUnavailable
from gateway.v1.routing import NO_BOUND, Fleet, Replica, ReplicaState
from gateway.v1.snapshot import Target

SETTLE_S = 10.0  # a replica that joined gets requests after so long even if not all that it should have is there

HEDGE_S = 5.0  # a load that takes longer is waited for on, and tried on the next replica too

log = logging.getLogger("loragate.loading")


class Loader:
    """Made before the reconciler that reports to it; `attach` brings them together.

    timeout_s: how long a request waits for its adapter before 503 model_loading. max_waiting: how many requests may
    wait for one adapter at once.
    """

    def __init__(
        self, fleet: Fleet, metrics: Metrics, clock: Callable[[], float], *, timeout_s: float, max_waiting: int
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._reconciler: Reconciler | None = None
        self._base_changed: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._opened: Callable[[], None] | None = None
        self._queued: Callable[[], bool] = lambda: False
        self._seen: dict[str, tuple[Seen, bool]] = {}
        self._base: str | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._loads: dict[str, asyncio.Task[None]] = {}  # engine name → the one search for a replica that takes it
        self._waiting: dict[str, int] = {}  # engine name → requests that wait for that
        self._wanting: Counter[str] = Counter()  # url → loads that wait for room there
        self._told: dict[str, frozenset[str]] = {}  # url → what routing was last told to be resident there
        self._changed = asyncio.Event()  # something became idle or resident
        self.plan: Plan = placement.EMPTY  # set by whoever follows demand
        self.used_elsewhere: Callable[[], frozenset[str]] = frozenset  # engine names that other gateways have in flight

    def attach(
        self,
        reconciler: Reconciler,
        *,
        base_changed: Callable[[], Coroutine[Any, Any, None]],
        opened: Callable[[], None],
        queued: Callable[[], bool] = lambda: False,
    ) -> None:
        """From now on `on_change` means something.

        base_changed: awaited when the pool serves another base. opened: called when an engine can be asked again.
        queued: whether requests wait that no replica knows of yet.
        """
        self._reconciler = reconciler
        self._base_changed = base_changed
        self._opened = opened
        self._queued = queued

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def base_id(self) -> str | None:
        """What the engines call the base of the pool; None until one has said."""
        base = self._reconciler.base if self._reconciler is not None else None
        return None if base is None else base.id

    def base_of(self, replica: Replica) -> str | None:
        """What this engine calls its base; None while it cannot be asked."""
        view = self._reconciler.residency.get(replica.url) if self._reconciler is not None else None
        return None if view is None or view.state is not Seen.READY else view.base

    def unfinished(self, replica: Replica) -> bool:
        """Whether it joined just now and still gets what it should have, while others can do the work."""
        view = self._reconciler.residency.get(replica.url) if self._reconciler is not None else None
        young = view is not None and not view.settled and self._clock() < replica.joined_at + SETTLE_S
        return young and self._fleet.any_ready()

    def turned(self) -> None:
        """A replica has become ready, or is no more."""
        self._changed.set()

    def on_change(self) -> None:
        """The reconciler sees something new: it is what routing knows from now on."""
        if self._reconciler is None:
            return
        opened, before, self._seen = False, self._seen, {}
        told, self._told = self._told, {}
        for replica in self._fleet.replicas:
            view = self._reconciler.residency.get(replica.url)
            if view is None:
                continue  # it joins or leaves at this moment
            seen = self._seen[replica.url] = (view.state, view.settled)
            opened = opened or (view.state is Seen.READY and before.get(replica.url) != seen)
            gone = told.get(replica.url, frozenset()) - replica.resident  # requests were told so by the engine
            _copy(view, replica)
            for name in gone & view.resident:
                self._reconciler.lost(name, replica.url)
            replica.resident -= gone
            self._told[replica.url] = replica.resident
            if view.state is Seen.REFUSED:
                replica.state, replica.reason = ReplicaState.REFUSED, view.reason
            elif view.state is Seen.UNREACHABLE:
                self._fleet.probed(replica, view.reason or "the engine does not answer", self._clock())
            elif replica.state is ReplicaState.REFUSED:
                replica.state, replica.reason = ReplicaState.STARTING, "it serves the right base again"
        self._changed.set()
        base = self.base_id()
        if base != self._base and self._base_changed is not None:
            self._base = base  # the first base: its models appear at once
            self._start(self._base_changed())
        if opened and self._opened is not None:
            self._opened()

    # What the room below asks ----------------------------------------------------------------------------

    def idle(self, url: str, names: Collection[str]) -> Sequence[str]:
        """Those of `names` that are not in flight at `url`: first what belongs elsewhere, then the longest unused.

        Last what other gateways use, perhaps there: it would be loaded again at once.
        """
        replica = self._replica(url)
        if replica is None:
            return ()
        # Whoever waits for what has to run dry waits for others to be served first: that must not keep it here.
        kept = self._waiting.keys() - {replica.draining}
        rest = [name for name in names if name not in replica.busy and name not in kept]
        last = {name: number for number, name in enumerate(replica.used)}
        fresh = len(last)  # loaded and not asked for yet: the youngest
        others = self.used_elsewhere()

        def order(name: str) -> tuple[bool, bool, int, str]:
            return name in others, url in self.plan.homes.get(name, ()), last.get(name, fresh), name

        return sorted(rest, key=order)

    def waits(self, url: str) -> None:
        self._wanting[url] += 1
        self._fleet.freed = self._freed  # costs half a microsecond a request, so only while somebody waits

    def starving(self, url: str) -> None:
        """Let the adapter with the least to do at `url` run dry; requests for it go elsewhere or wait their turn."""
        replica = self._replica(url)
        if replica is None or self._reconciler is None:
            return
        kept = self._reconciler.residency[url].pinned
        busy = [name for name in replica.busy if name not in kept]
        if busy and not replica.draining:
            replica.draining = min(busy, key=lambda name: (replica.busy[name], name))

    def fed(self, url: str) -> None:
        self._wanting[url] -= 1
        if not self._wanting[url]:
            del self._wanting[url]
            replica = self._replica(url)
            if replica is not None:
                replica.draining = ""
        if not self._wanting:
            self._fleet.freed = None
        self._changed.set()

    def in_use(self, engine_name: str) -> bool:
        """Whether a request that was admitted may still want these weights."""
        return (
            engine_name in self._waiting
            or any(engine_name in replica.busy for replica in (*self._fleet.replicas, *self._fleet.leaving))
            or self._queued()
        )

    def runs(self, url: str, engine_name: str) -> bool:
        fleet = self._fleet
        return any(each.url == url and engine_name in each.busy for each in (*fleet.replicas, *fleet.leaving))

    def using(self) -> frozenset[str]:
        """Engine names of all requests that were admitted; ANY among them while some wait whose names nobody keeps."""
        names = {*self._waiting, *((ANY,) if self._queued() else ())}
        return frozenset(names.union(*(replica.busy for replica in (*self._fleet.replicas, *self._fleet.leaving))))

    def homes(self, engine_name: str, urls: Sequence[str]) -> Sequence[str]:
        return placement.home(self.plan, engine_name, tuple(urls))

    # What a request asks ---------------------------------------------------------------------------------

    def ensure(self, target: Target) -> asyncio.Future[None]:
        """Done once a replica may be sent `target`; all who ask at once share one load. ModelLoading."""
        name = target.engine_name
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(name, 0)
        self._metrics.adapter_misses += target.version is not None  # the base waits only for engines
        if waiting >= self._max_waiting:
            future.set_exception(_loading(target, 5))
            return future
        self._tell_lost(name)
        task = self._loads.get(name)
        if task is None:
            task = self._loads[name] = self._start(self._ensure(target))
            task.add_done_callback(lambda _: self._loads.pop(name, None))
        self._waiting[name] = waiting + 1
        task.add_done_callback(lambda task: self._tell(task, name, future))
        return future

    def _tell(self, task: asyncio.Task[None], name: str, future: asyncio.Future[None]) -> None:
        # After whoever waits has been resumed: until its request is sent, nothing else says that the name is in use.
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, self._leave, name)
        if future.done():
            return
        if task.cancelled():
            future.cancel()
            return
        error = task.exception()
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # a caller that left must not make it a warning

    def _leave(self, name: str) -> None:
        self._waiting[name] -= 1
        if not self._waiting[name]:
            del self._waiting[name]

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; a caller that left must not make it a warning

    def _tell_lost(self, name: str) -> None:
        """What engines said to requests that they do not have; before anything else is seen, which would undo it."""
        if self._reconciler is None:
            return
        for replica in self._fleet.replicas:
            view = self._reconciler.residency.get(replica.url)
            if view is not None and name in view.resident - replica.resident:
                self._reconciler.lost(name, replica.url)
                self._told[replica.url] = self._told.get(replica.url, frozenset()) - {name}

    async def _ensure(self, target: Target) -> None:
        """Until some replica may be sent `target`: first where it belongs, of those that have room."""
        started, until = self._clock(), asyncio.get_running_loop().time() + self._timeout_s
        wait_s = 5
        try:
            async with asyncio.timeout_at(until):
                while self._fleet.pick(target) is None:
                    self._changed.clear()
                    if self._expecting():
                        await self._until_ready()
                        continue
                    wait_s = await self._bring(target, until)
                    if not wait_s:
                        self._metrics.adapter_load_seconds.observe(self._clock() - started)
                    elif wait_s > 0:
                        break
                    elif self._fleet.pick(target) is None:
                        await self._wait_for_turn(target)
                else:
                    return
        except TimeoutError:
            pass
        if not self._fleet.any_ready():
            raise UpstreamUnavailable("No engine is ready. GET /readyz says why.", retry_after_s=5)
        raise _loading(target, wait_s if wait_s > 0 else 2)

    def _expecting(self) -> bool:
        return not self._fleet.any_ready() and self._clock() < self._fleet.expected_until

    async def _until_ready(self) -> None:
        """All addresses change at once: until a replica is ready or none is expected any more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._fleet.expected_until - self._clock()):
                await self._changed.wait()

    async def _wait_for_turn(self, target: Target) -> None:
        """It is loaded, and as many others are in flight there as the engine has slots: until something changes."""
        ready = (replica for replica in self._fleet.replicas if replica.state is ReplicaState.READY)
        holder = next((replica.url for replica in ready if target.engine_name in replica.resident), None)
        if holder is None:
            return  # it has left since
        self.waits(holder)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._changed.wait()
        except TimeoutError:
            self.starving(holder)
            await self._changed.wait()
        finally:
            self.fed(holder)

    async def _bring(self, target: Target, until: float) -> int:
        """0 once a replica has it; seconds until it is worth asking again where none takes it; -1: wait for news."""
        reconciler, name, replicas = self._reconciler, target.engine_name, self._fleet.replicas
        ready = {r.url: r for r in replicas if r.state is ReplicaState.READY}
        if reconciler is None or not ready:
            return 5
        order = self._order(name, ready, reconciler)
        if not order:
            return -1  # it is where it should be, and may not be sent there now
        tasks: list[asyncio.Task[int]] = []
        try:
            for url in order:
                tasks.append(asyncio.create_task(self._load(target, ready[url], 0.0)))
                if await _one_has_it(tasks, min(HEDGE_S, self._timeout_s / 4)):
                    return 0
            if replicas is not self._fleet.replicas or self._expecting():
                return -1  # not those that were asked
            full = [url for url, task in zip(order, tasks, strict=True) if task.done() and task.result() < 0]
            left = max(0.1, until - asyncio.get_running_loop().time())
            if full:
                tasks.append(asyncio.create_task(self._load(target, ready[full[0]], left)))
            while not await _one_has_it(tasks, left):
                if all(task.done() for task in tasks):
                    return max(2, tasks[-1].result()) if full else tasks[-1].result()
            return 0
        finally:
            for task in tasks:
                task.cancel()  # what it waits for goes on
            await asyncio.gather(*tasks, return_exceptions=True)

    def _order(self, name: str, ready: Mapping[str, Replica], reconciler: Reconciler) -> list[str]:
        """Where to load it, best first: its homes, or the least burdened of those near to it; then all others."""
        order = [url for url in self.homes(name, tuple(ready)) if name not in ready[url].resident]
        homes = sum(url in self.plan.homes.get(name, ()) for url in order)
        if homes:
            return [*sorted(order[:homes], key=reconciler.room), *order[homes:]]

        def burden(url: str) -> tuple[int, int, int]:
            return reconciler.room(url), self._wanting[url], ready[url].outstanding

        return [*sorted(order[: placement.NEAR], key=burden), *order[placement.NEAR :]]

    async def _load(self, target: Target, replica: Replica, wait_s: float) -> int:
        """0 once `replica` has it, else the seconds until it is worth asking again; -1: there is no room."""
        if self._reconciler is None:
            return 5
        try:
            await self._reconciler.ensure(target.engine_name, replica.url, wait_s=wait_s)
        except Saturated:
            return -1
        except ServiceError as error:
            log.warning("%s could not be loaded on %s: %s", target.engine_name, replica.url, error.message)
            return error.retry_after_s or 5
        return 0

    def _freed(self, replica: Replica) -> None:
        """A name became idle while somebody waits for room."""
        self._changed.set()
        if self._reconciler is not None:
            self._reconciler.freed(replica.url)

    def _replica(self, url: str) -> Replica | None:
        """None: it has left."""
        return next((replica for replica in self._fleet.replicas if replica.url == url), None)


async def _one_has_it(tasks: Sequence[asyncio.Task[int]], longest_s: float) -> bool:
    """Whether a load of `tasks` came to 0. Waits until one has, or the last of them came to something else."""
    waiting = [task for task in tasks if not task.done()]
    while waiting and not _came(tasks):
        done, _ = await asyncio.wait(waiting, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
        if not done or tasks[-1] in done:
            break
        waiting = [task for task in waiting if task not in done]
    return _came(tasks)


def _came(tasks: Sequence[asyncio.Task[int]]) -> bool:
    return any(task.done() and task.result() == 0 for task in tasks)


def _copy(view: ReplicaView, replica: Replica) -> None:
    replica.resident = view.resident
    replica.slots = view.slots or NO_BOUND
    if replica.draining not in view.resident:
        replica.draining = ""
    for name in [name for name in replica.used if name not in view.resident]:
        del replica.used[name]


def _loading(target: Target, retry_after_s: int) -> ModelLoading:
    return ModelLoading(f"The model `{target.name}` is being loaded. Try again shortly.", retry_after_s=retry_after_s)
