"""What the reconciler sees of the engines, told to the data plane; what the data plane misses, asked of the reconciler.

The only bridge between adapters' view of replicas and routing's. Must not know requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from adapters.errors import ServiceError
from adapters.reconcile import Reconciler
from adapters.types import ReplicaState as Seen
from gateway.errors import ModelLoading
from gateway.metrics import Metrics
from gateway.v1.routing import Fleet, Replica, ReplicaState
from gateway.v1.snapshot import Target

log = logging.getLogger("loragate.loading")

LOAD_TIMEOUT_S = 30.0  # how long a request waits for its adapter before 503 model_loading


class Loader:
    """Made before the reconciler that reports to it; `attach` brings them together."""

    def __init__(self, fleet: Fleet, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._reconciler: Reconciler | None = None
        self._base_changed: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._opened: Callable[[], None] | None = None
        self._seen: dict[str, Seen] = {}
        self._base: str | None = None
        self._running: set[asyncio.Task[None]] = set()

    def attach(
        self,
        reconciler: Reconciler,
        *,
        base_changed: Callable[[], Coroutine[Any, Any, None]],
        opened: Callable[[], None],
    ) -> None:
        """From now on `on_change` means something.

        base_changed: awaited when the pool serves another base. opened: called when an engine can be asked again.
        """
        self._reconciler = reconciler
        self._base_changed = base_changed
        self._opened = opened

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

    def on_change(self) -> None:
        """The reconciler sees something new: it is what routing knows from now on."""
        if self._reconciler is None:
            return
        opened = False
        for replica in self._fleet.replicas:
            view = self._reconciler.residency[replica.url]
            before, self._seen[replica.url] = self._seen.get(replica.url), view.state
            opened = opened or (view.state is Seen.READY and before is not Seen.READY)
            replica.resident = view.resident
            if view.state is Seen.REFUSED:
                replica.state, replica.reason = ReplicaState.REFUSED, view.reason
            elif view.state is Seen.UNREACHABLE:
                self._fleet.probed(replica, view.reason or "the engine does not answer", self._clock())
            elif replica.state is ReplicaState.REFUSED:
                replica.state, replica.reason = ReplicaState.STARTING, "it serves the right base again"
        base = self.base_id()
        if base != self._base and self._base_changed is not None:
            self._base = base  # the first base: its models appear at once
            self._start(self._base_changed())
        if opened and self._opened is not None:
            self._opened()

    def ensure(self, target: Target) -> asyncio.Future[None]:
        """Have `target` loaded on the least busy ready replica that takes it; all who ask at once share one load.

        ModelLoading.
        """
        return self._start(self._ensure(target))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; a caller that left must not make it a warning

    async def _ensure(self, target: Target) -> None:
        ready = [r for r in self._fleet.replicas if r.state is ReplicaState.READY]
        started, wait_s = self._clock(), 5
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                for replica in sorted(ready, key=lambda r: r.outstanding):
                    wait_s = await self._load(target, replica)
                    if not wait_s:
                        self._metrics.adapter_load_seconds.observe(self._clock() - started)
                        return
        except TimeoutError:
            pass
        raise _loading(target, wait_s)

    async def _load(self, target: Target, replica: Replica) -> int:
        """0 once `replica` has it, else the seconds until it is worth asking again."""
        if self._reconciler is None:
            return 5
        if target.engine_name in self._reconciler.residency[replica.url].resident - replica.resident:
            self._reconciler.lost(target.engine_name, replica.url)
        try:
            await self._reconciler.ensure(target.engine_name, replica.url)
        except ServiceError as error:
            log.warning("%s could not be loaded on %s: %s", target.engine_name, replica.url, error.message)
            return error.retry_after_s or 5
        replica.resident |= {target.engine_name}
        return 0


def _loading(target: Target, retry_after_s: int) -> ModelLoading:
    return ModelLoading(f"The model `{target.name}` is being loaded. Try again shortly.", retry_after_s=retry_after_s)
