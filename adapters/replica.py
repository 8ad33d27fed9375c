"""What is known of one engine, and the loads and proofs there: one at a time, one per name.

`listed` is what the engine lists, `resident` what is counted as in its slots: at most `capacity` names. Real vLLM
0.32 (tried) puts weights out of its slots by itself, in the order of their last use, and reads them again when they
are asked for, as fast as a load. So putting out is counted here and not told: an unload frees nothing there, and a
name that is unloaded and loaded again while requests of before still run ends the engine.
The only mutable state of this room; changed by adapters/reconcile.py alone. Must not know the registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

from adapters.engine import EngineClient, EngineModel, EngineUnreachable
from adapters.errors import Conflict, EngineError, NotProven, Saturated, ServiceError
from adapters.names import is_engine_name
from adapters.traffic import Traffic
from adapters.types import ReplicaState, ReplicaView

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
PATIENCE_S = 1.0  # whoever waits longer for room has a busy adapter run dry
LISTED_MAX = 256  # names beyond which an engine forgets those unused for the longest time: its list is asked for often
DISTRUST_S = 300.0  # weights that did not prove themselves are tried again after so long

# Asks the engine to show that it answers with the weights; NotProven, EngineError. False: only for lack of contrary
# evidence, to be asked again when there is something to compare with.
Prove = Callable[[EngineClient, str, str], Awaitable[bool]]  # client, base's id, engine name


async def trusting(client: EngineClient, base: str, engine_name: str) -> bool:
    """No proof at all."""
    return True


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    attempts: int
    retry_at: float  # unix seconds


class Replica:
    """One engine as seen from here. `changed` is called after every change of what `view` would say."""

    def __init__(
        self,
        client: EngineClient,
        clock: Callable[[], float],
        changed: Callable[[], None],
        traffic: Traffic,
        prove: Prove,
        guarded: Callable[[str], bool],
    ) -> None:
        self.client = client
        self.url = client.url
        self.base: EngineModel | None = None
        self.base_names: frozenset[str] = frozenset()  # the base's id and its aliases
        self.listed: frozenset[str] = frozenset()  # without `elsewhere` and what is distrusted
        self.resident: frozenset[str] = frozenset()
        self.foreign: frozenset[str] = frozenset()  # set by the reconciler, which knows the registry
        self.pinned: frozenset[str] = frozenset()  # likewise: never put out
        self.elsewhere: frozenset[str] = frozenset()  # loaded there, under names like ours, from other folders
        self.refusal = ""  # set by the reconciler, which knows the pool
        self.reachable = False
        self.probed = asyncio.Event()  # the first probe has ended, one way or the other
        self.evictions = 0
        self.settled = True  # set by the reconciler: what came later is not, until its first turn is over
        self._closed = False
        self._reason = "not asked yet"
        self._clock = clock
        self._changed = changed
        self._traffic = traffic
        self._prove = prove
        self._guarded = guarded
        self._serial = asyncio.Lock()
        self._room = asyncio.Event()  # something may have become idle
        self._moves = 0  # loads and unloads that ended; a model list asked for before one is stale
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._cold: dict[str, None] = {}  # listed and put out, the longest unused first
        self._claimed: set[str] = set()  # taken from `elsewhere` once: whoever insists may have it
        self._proven: dict[str, bool] = {}  # in this life of the engine; False: not against anything yet
        self._distrusted: set[str] = set()  # listed there or not: no request goes to them

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
            listed=self.listed,
            loading=frozenset(self._loads),
            failed=MappingProxyType({name: failure.reason for name, failure in self._failures.items()}),
            foreign=self.foreign,
            slots=self.client.slots,
            capacity=self.client.capacity,
            pinned=self.pinned,
            evictions=self.evictions,
            settled=self.settled,
        )

    async def probe(self) -> None:
        """Ask what is served; an engine that cannot say is unreachable with a reason. Never raises."""
        moves = self._moves
        try:
            models = await self.client.models()
            bases = [model for model in models if model.parent is None]
            if not bases:
                raise EngineError(f"Engine {self.url} serves no base model.")
            await self.client.learn_slots(bases[0].id)  # how much of the list may count as in them
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
        listed = frozenset(model.id for model in adapters)
        self.elsewhere = frozenset(
            model.id
            for model in adapters
            if is_engine_name(model.id)
            and model.root not in (None, self.client.path(model.id))
            and model.id not in self._claimed
        )
        before, self.listed = self.listed, listed - self.elsewhere - self._distrusted
        if before and not before & listed:  # restarted between two looks
            self._proven.clear()
        for name in before - listed:  # somebody else unloaded it, and may have brought another in under its name
            self._proven.pop(name, None)
            self._cold.pop(name, None)
        self.resident &= self.listed
        for name in sorted(self.listed - before - self.foreign):  # loaded by others, or before this gateway came
            if is_engine_name(name) and self._free() > 0:
                self.resident |= {name}
            else:
                self._cold[name] = None

    async def load(self, engine_name: str, *, wait_s: float | None = 0.0) -> None:
        """Have `engine_name` resident and proven; callers that come while it loads share that load.

        wait_s: for room, seconds; 0: only what is idle may be put out for it; None: nothing may. EngineError,
        NotProven, Saturated.
        """
        if self._closed:
            raise EngineError(f"Engine {self.url} is no longer one of this gateway's.")
        if engine_name in self.resident:
            return
        while not await self._share(engine_name, wait_s):
            pass  # somebody less patient had begun it

    async def _share(self, engine_name: str, wait_s: float | None) -> bool:
        """Wait for the load under way, or begin one; False where another's gave up for want of room."""
        task, others = self._loads.get(engine_name), True
        if task is None:
            others = False
            work = self._load(engine_name, wait_s)
            task = asyncio.create_task(work, name=f"load {engine_name} on {self.url}")
            task.add_done_callback(_retrieve)  # its failure is kept here even when every waiter has left
            self._loads[engine_name] = task
            self._changed()
        try:
            await asyncio.shield(task)  # one waiter's leaving must not stop it for the others
        except Saturated:
            if not others or wait_s is None:
                raise
            return False
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise EngineError(
                f"The gateway stopped while {engine_name} was being loaded, or engine {self.url} left it."
            ) from None
        return True

    async def unload(self, engine_name: str) -> None:
        """Have the engine forget `engine_name`; EngineError, Conflict where it is used or about to be.

        Loads of others may have to end first, so that is looked at when its turn has come, and no request is sent to
        it from there on.
        """
        async with self._serial:
            if self._guarded(engine_name) or not self._traffic.idle(self.url, [engine_name]):
                raise Conflict(f"{engine_name} is in use at engine {self.url}.")
            if engine_name in self.resident:
                self._stand_by(engine_name)
            await self._forget(engine_name)
            self._failures.pop(engine_name, None)
            self._distrusted.discard(engine_name)
        self._changed()

    def lost(self, engine_name: str) -> None:
        """The engine says that it does not know it."""
        self.resident -= {engine_name}
        self.listed -= {engine_name}
        self._cold.pop(engine_name, None)

    def disown(self, foreign: frozenset[str]) -> None:
        """These are not in the registry: they are nobody's business here."""
        self.foreign = foreign
        self.resident -= foreign
        for name in foreign & self._cold.keys():
            del self._cold[name]

    async def trim(self) -> None:
        """Have the engine forget what has been unused for the longest time, where it lists very many. EngineError."""
        most = max(LISTED_MAX, 2 * (self.client.capacity or 0))
        for name in list(self._cold)[: max(0, len(self.listed) - most)]:
            async with self._serial:
                if name in self._cold and name not in self.foreign and not self._traffic.in_use(name):
                    await self._forget(name)

    async def prove_again(self, engine_name: str) -> None:
        """Ask for the proof of what is listed there already: loaded before this gateway knew the engine. Never raises.

        Requests go on meanwhile; they end if it fails.
        """
        async with self._serial:
            if engine_name in self.resident and self.base is not None:
                try:
                    await self._demand_proof(engine_name, self.base.id)
                except ServiceError as exc:
                    self._fail(engine_name, exc)
        self._changed()

    def unproven(self, weak_too: bool = False) -> frozenset[str]:
        """Names that have answered requests here without a proof; weak_too: or with one that compared with nothing."""
        return frozenset(n for n in self.resident if n not in self._proven or (weak_too and not self._proven[n]))

    def freed(self) -> None:
        """An adapter has become idle: whoever waits for room may look again."""
        self._room.set()

    def room(self) -> int:
        """How dear one more adapter is: 0 there is room, 1 an idle one has to go, 2 all are in use, 3 all stay."""
        if self._crowded() and self.resident - self.pinned:
            return 2
        if self._free() > 0:
            return 0
        if self._victim() is not None:
            return 1
        return 2 if self.resident - self.pinned else 3

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
        """End the loads under way; there will be no others."""
        self._closed = True
        self.probed.set()  # nobody need wait for that
        tasks = list(self._loads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One load ------------------------------------------------------------------------------------------

    async def _load(self, engine_name: str, wait_s: float | None) -> None:
        try:
            if not await self._load_where_room(engine_name, evict=wait_s is not None):
                await self._load_after_others(engine_name, wait_s or 0.0)
            self._failures.pop(engine_name, None)
        except EngineError as exc:
            if not isinstance(exc, EngineUnreachable) or (await self._alive() and not self.refusal):
                self._fail(engine_name, exc)
            raise
        finally:
            self._loads.pop(engine_name, None)
            self._changed()

    async def _load_where_room(self, engine_name: str, *, evict: bool) -> bool:
        """False where there is no room and nobody to put out."""
        async with self._serial:
            if self._crowded() and not (engine_name in self.listed and engine_name in self._proven):
                return False
            while engine_name not in self.resident and self._free() <= 0:
                if not (evict and self._put_out()):
                    return False
            if engine_name not in self.listed:
                await self._bring(engine_name)
            if engine_name not in self._proven and self.base is not None:
                await self._demand_proof(engine_name, self.base.id)
            self.resident |= {engine_name}
            self._cold.pop(engine_name, None)
            return True

    async def _bring(self, engine_name: str) -> None:
        await self.probe()  # it may have been restarted since it was last asked, perhaps with another base
        if self.refusal or not self.reachable:
            raise EngineUnreachable(self.refusal or self._reason)
        if engine_name in self.listed:
            return
        if self._traffic.runs(self.url, engine_name):  # loaded again under them, the name would end the engine
            raise Saturated(
                f"{engine_name} was unloaded there while requests run on it at engine {self.url}. Try again shortly.",
                retry_after_s=2,
            )
        self._moves += 1  # a list that comes meanwhile may hold it already, and it is not proven yet
        try:
            if engine_name in self.elsewhere:
                self._claimed.add(engine_name)
                await self.client.unload(engine_name)
            try:
                await self.client.load(engine_name)
            except EngineUnreachable:
                if not await self._alive():
                    raise
                await self.client.load(engine_name)  # only the answer was lost, or never sent
        finally:
            self._moves += 1
        self._distrusted.discard(engine_name)
        self.elsewhere -= {engine_name}
        self.listed |= {engine_name}

    async def _load_after_others(self, engine_name: str, wait_s: float) -> None:
        """Wait until something here is idle and may be put out; Saturated."""
        until = asyncio.get_running_loop().time() + wait_s
        self._traffic.waits(self.url)
        try:
            while asyncio.get_running_loop().time() < until and self.room() < 3:
                self._room.clear()
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        await self._room.wait()
                except TimeoutError:
                    self._traffic.starving(self.url)
                if await self._load_where_room(engine_name, evict=True):
                    return
        finally:
            self._traffic.fed(self.url)
        raise Saturated(
            f"Engine {self.url} has {len(self.resident)} adapters in use or pinned, and no room for another. "
            "Start it with a larger --max-loras, or try again.",
            retry_after_s=2,
        )

    def _crowded(self) -> bool:
        """Whether as many adapters are in use as it computes with at once: a load, or a proof, would be one more."""
        return self.client.slots is not None and len(self.resident) - self._idle() >= self.client.slots

    def _idle(self) -> int:
        return len(self._traffic.idle(self.url, self.resident))

    def _free(self) -> int:
        if self.client.capacity is None:
            return 1
        return self.client.capacity - len(self.resident)

    def _put_out(self) -> bool:
        """Make room by one; False where nothing may go."""
        victim = self._victim()
        if victim is None:
            return False
        self.evictions += 1
        self._stand_by(victim)
        return True

    def _stand_by(self, engine_name: str) -> None:
        """No request is sent to it from here on."""
        self.resident -= {engine_name}
        self._cold[engine_name] = None
        self._changed()

    def _victim(self) -> str | None:
        """Whom to put out: what is idle for the longest time and neither pinned nor about to answer."""
        for name in self._traffic.idle(self.url, self.resident - self.pinned):
            if not self._guarded(name):
                return name
        return None

    async def _demand_proof(self, engine_name: str, base: str) -> None:
        try:
            self._proven[engine_name] = await self._prove(self.client, base, engine_name)
        except ServiceError:
            self._distrusted.add(engine_name)  # no request is sent to it from here on
            self.resident -= {engine_name}
            self.listed -= {engine_name}
            self._changed()
            if not self._traffic.in_use(engine_name):
                with suppress(ServiceError):
                    await self._forget(engine_name)
            raise

    async def _forget(self, engine_name: str) -> None:
        try:
            await self.client.unload(engine_name)
        except EngineUnreachable:
            await self._alive()
            raise
        finally:
            self._moves += 1
        self.lost(engine_name)
        self.freed()

    async def _alive(self) -> bool:
        """A connection was lost: whether the engine is. Where not, all other adapters there go on."""
        await self.probe()
        return self.reachable

    def _fail(self, engine_name: str, error: ServiceError) -> None:
        before = self._failures.get(engine_name)
        attempts = before.attempts + 1 if before else 1
        wait = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempts - 1))
        if isinstance(error, NotProven):
            wait = DISTRUST_S
        self._failures[engine_name] = _Failure(error.message, attempts, self._clock() + wait)

    def _lose(self, reason: str) -> None:
        """An engine that comes back may have been restarted: nothing that it had is taken for granted."""
        self.reachable, self._reason = False, reason
        self.resident = self.listed = self.foreign = self.elsewhere = frozenset()
        self._cold.clear()
        self._claimed.clear()
        self._proven.clear()
        self._distrusted.clear()
        self.client.forget_slots()
        self.freed()


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
