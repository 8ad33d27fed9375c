"""Active probes: asks every engine, on the data path and through the data plane's own client, whether it answers.

A ready replica is asked for its model list (cheap); one that is not must answer a one-token completion before it
gets traffic again: an engine's /health can be 200 while generation is dead. One that the reconciler has not reached
is knocked at, so that nobody waits for the reconciler's slower beat. Must not know adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from gateway.settings import Health
from gateway.v1 import wire
from gateway.v1.routing import Fleet, Replica, ReplicaState
from gateway.v1.upstream import Fault


class Probe:
    """One question and its answer, as a sink of the upstream client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: asyncio.Future[str | None] = loop.create_future()  # None: alive; else why not
        self._status = 0
        self._answer = b""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        if len(self._answer) < 65536:
            self._answer += data

    def on_end(self) -> None:
        # A 4xx is an answer too: an engine that serves only embeddings refuses a completion and is well.
        self._finish(None if self._status < 500 else f"the engine answers HTTP {self._status}")

    def on_fault(self, fault: Fault, detail: str) -> None:
        self._finish(detail or fault.value)

    def _finish(self, outcome: str | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Prober:
    """One loop per replica of the fleet; `follow` is to be called whenever its replicas are others.

    unfinished: whether a replica had better not be asked yet.
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: Health,
        *,
        base: Callable[[Replica], str | None],
        found: Callable[[], None],
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        unfinished: Callable[[Replica], bool] = lambda _: False,
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._base = base
        self._found = found
        self._clock = clock
        self._loop = loop
        self._unfinished = unfinished
        self._watches: dict[Replica, tuple[asyncio.Task[None], asyncio.Event]] = {}

    def look(self) -> None:
        """The reconciler has reached an engine: whoever is not ready is asked now, not at the next beat."""
        for replica, (_, opened) in self._watches.items():
            if replica.state is not ReplicaState.READY:
                opened.set()

    def follow(self) -> None:
        """The fleet has others: those are watched, and what left is not."""
        for replica in [replica for replica in self._watches if replica not in self._fleet.replicas]:
            self._watches.pop(replica)[0].cancel()
        for replica in self._fleet.replicas:
            if replica not in self._watches:
                opened = asyncio.Event()
                self._watches[replica] = (self._loop.create_task(self._watch(replica, opened)), opened)

    async def __aenter__(self) -> Prober:
        self.follow()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task, _ in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, replica: Replica, opened: asyncio.Event) -> None:
        while True:  # at first the reconciler is asking, so there is time for a sleep
            # One that is away is asked more often: the first answer should not wait for a slow beat.
            away = replica.state in (ReplicaState.STARTING, ReplicaState.UNREACHABLE)
            with suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
                async with asyncio.timeout(self._settings.probe_interval_s / (4 if away else 1)):
                    await opened.wait()
            opened.clear()
            await self.probe(replica)

    async def probe(self, replica: Replica) -> None:
        """Ask once and let the fleet know."""
        if replica.state is ReplicaState.REFUSED or (
            replica.state is ReplicaState.STARTING and self._unfinished(replica)
        ):
            return
        base = self._base(replica)
        if base is None:  # the reconciler has left its reason; it looks again as soon as somebody opens
            if await self._ask(replica, None) is None:
                self._found()
            return
        reason = await self._ask(replica, None if replica.state is ReplicaState.READY else base)
        self._fleet.probed(replica, reason, self._clock())

    async def _ask(self, replica: Replica, generate: str | None) -> str | None:
        """None for an answer, else why not. Asks for one token of the model `generate`, or only for the model list."""
        sink = Probe(self._loop)
        if generate is None:
            call = replica.upstream.get("/v1/models", sink)
        else:
            body = wire.encode({"model": generate, "prompt": "ok", "max_tokens": 1, "temperature": 0})
            call = replica.upstream.post("/v1/completions", body, sink, "probe")
        try:
            async with asyncio.timeout(self._settings.probe_timeout_s):
                return await sink.outcome
        except TimeoutError:
            return f"no answer to a probe within {self._settings.probe_timeout_s:g} s"
        finally:
            call.cancel()
