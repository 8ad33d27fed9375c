"""What is known of one engine, and the loads and unloads under way there: one at a time, one per name.

The only mutable state of this room; changed by adapters/reconcile.py alone. Must not know the registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from adapters.engine import EngineClient, EngineModel, EngineUnreachable
from adapters.errors import EngineError, ServiceError
from adapters.names import is_engine_name
from adapters.types import ReplicaState, ReplicaView

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    attempts: int
    retry_at: float  # unix seconds


class Replica:
    """One engine as seen from here. `changed` is called after every change of what `view` would say."""

    def __init__(self, client: EngineClient, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self.client = client
        self.url = client.url
        self.base: EngineModel | None = None
        self.base_names: frozenset[str] = frozenset()  # the base's id and its aliases
        self.resident: frozenset[str] = frozenset()
        self.foreign: frozenset[str] = frozenset()  # set by the reconciler, which knows the registry
        self.elsewhere: frozenset[str] = frozenset()  # loaded there, under names like ours, from other folders
        self.refusal = ""  # set by the reconciler, which knows the pool
        self.reachable = False
        self.probed = asyncio.Event()  # the first probe has ended, one way or the other
        self._reason = "not asked yet"
        self._clock = clock
        self._changed = changed
        self._serial = asyncio.Lock()
        self._moves = 0  # loads and unloads that ended; a model list asked for before one is stale
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._claimed: set[str] = set()  # taken from `elsewhere` once: whoever insists may have it

    def view(self) -> ReplicaView:
        """All of it, frozen."""
        state = ReplicaState.UNREACHABLE
        if self.reachable:
            state = ReplicaState.REFUSED if self.refusal else ReplicaState.READY
        return ReplicaView(
            url=self.url,
            state=state,
            reason=self.refusal if self.reachable else self._reason,
            base=self.base.id if self.base else None,
            root=self.base.root if self.base else None,
            max_model_len=self.base.max_model_len if self.base else None,
            resident=self.resident,
            loading=frozenset(self._loads),
            failed=MappingProxyType({name: failure.reason for name, failure in self._failures.items()}),
            foreign=self.foreign,
        )

    async def probe(self) -> None:
        """Ask what is served; an engine that cannot say is unreachable with a reason. Never raises."""
        moves = self._moves
        try:
            models = await self.client.models()
            bases = [model for model in models if model.parent is None]
            if not bases:
                raise EngineError(f"Engine {self.url} serves no base model.")
        except ServiceError as exc:
            self._lose(exc.message)
        else:
            if moves == self._moves:
                self.reachable, self._reason = True, ""
                self.base = bases[0]
                self.base_names = frozenset(model.id for model in bases)
                self._list([model for model in models if model.parent is not None])
                for name in self.resident & self._failures.keys():
                    del self._failures[name]
        self.probed.set()
        self._changed()

    def _list(self, adapters: list[EngineModel]) -> None:
        """Weights from another folder may be others, or be gone when vLLM reads them again, and it dies of that."""
        self.elsewhere = frozenset(
            model.id
            for model in adapters
            if is_engine_name(model.id)
            and model.root not in (None, self.client.path(model.id))
            and model.id not in self._claimed
        )
        self.resident = frozenset(model.id for model in adapters) - self.elsewhere

    async def load(self, engine_name: str) -> None:
        """Have `engine_name` resident; callers that come while it loads share that load. EngineError."""
        if engine_name in self.resident:
            return
        task = self._loads.get(engine_name)
        if task is None:
            task = asyncio.create_task(self._load(engine_name), name=f"load {engine_name} on {self.url}")
            task.add_done_callback(_retrieve)  # its failure is kept here even when every waiter has left
            self._loads[engine_name] = task
            self._changed()
        try:
            await asyncio.shield(task)  # one waiter's leaving must not stop it for the others
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise EngineError(f"The gateway stopped while {engine_name} was being loaded.") from None

    async def unload(self, engine_name: str) -> None:
        """Have the engine forget `engine_name`; EngineError."""
        async with self._serial:
            try:
                await self.client.unload(engine_name)
            except EngineUnreachable as exc:
                self._lose(exc.message)
                raise
            finally:
                self._moves += 1
            self.resident -= {engine_name}
            self._failures.pop(engine_name, None)
        self._changed()

    def waiting(self) -> frozenset[str]:
        """Names whose last load failed so recently that it is not tried again yet."""
        now = self._clock()
        return frozenset(name for name, failure in self._failures.items() if failure.retry_at > now)

    def retry_after_s(self, engine_name: str) -> float:
        """Seconds until a failed load may be tried again; 0 where nothing failed."""
        failure = self._failures.get(engine_name)
        return max(0.0, failure.retry_at - self._clock()) if failure else 0.0

    @property
    def failed(self) -> frozenset[str]:
        """Names whose last load failed."""
        return frozenset(self._failures)

    def forget_failures(self, names: frozenset[str]) -> None:
        """Drop the failures of names that the registry no longer holds."""
        self._failures = {name: failure for name, failure in self._failures.items() if name not in names}

    async def close(self) -> None:
        """End the loads under way."""
        tasks = list(self._loads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, engine_name: str) -> None:
        try:
            async with self._serial:
                try:
                    if engine_name in self.elsewhere:
                        self._claimed.add(engine_name)
                        await self.client.unload(engine_name)
                    await self.client.load(engine_name)
                finally:
                    self._moves += 1
            self.resident |= {engine_name}
            self.elsewhere -= {engine_name}
            self._failures.pop(engine_name, None)
        except EngineUnreachable as exc:
            self._lose(exc.message)
            raise
        except EngineError as exc:
            self._fail(engine_name, exc.message)
            raise
        finally:
            self._loads.pop(engine_name, None)
            self._changed()

    def _fail(self, engine_name: str, reason: str) -> None:
        before = self._failures.get(engine_name)
        attempts = before.attempts + 1 if before else 1
        wait = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempts - 1))
        self._failures[engine_name] = _Failure(reason, attempts, self._clock() + wait)

    def _lose(self, reason: str) -> None:
        """An engine that comes back may have been restarted: nothing that it had is taken for granted."""
        self.reachable, self._reason = False, reason
        self.resident = self.foreign = self.elsewhere = frozenset()
        self._claimed.clear()


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
