"""The engine of this machine stands still while a training run needs its GPU, and comes back whatever becomes of it.

Each run that says so holds it for some seconds, and says so again before they are over: the engine starts again when
the last of them has said that it is done, or has said nothing for too long. Must not know runs, nor how an engine is
stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol

from adapters.errors import Conflict, Unavailable

POLL_S = 0.1
DRAIN_S = 30.0  # for answers on their way
REASON = "the engine is paused while its GPU trains"
FIRST_S = 60.0  # until somebody says that a run of before still needs the room
SHORTEST_S, LONGEST_S = 1.0, 600.0
log = logging.getLogger("loragate.pausing")


class LocalEngine(Protocol):
    """What supervises the engine of this machine. states: how it is, for /readyz and the status."""

    def states(self) -> list[dict[str, Any]]: ...

    def hold(self, reason: str) -> None: ...

    async def held(self) -> None: ...

    def release(self) -> None: ...


class Pauses:
    """engine: None where this gateway started none. clock: monotonic seconds; drain_s: for answers on their way.

    refuse: told why requests are refused, "" where they are not any more; in_flight: how many are on their way;
    before: runs that have needed its room since before we began.
    """

    def __init__(
        self,
        engine: LocalEngine | None,
        clock: Callable[[], float],
        *,
        refuse: Callable[[str], None],
        in_flight: Callable[[], int],
        before: Callable[[], Collection[str]] = tuple,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._refuse = refuse
        self._in_flight = in_flight
        self._before = before
        self._drain_s = drain_s
        self._until: dict[str, float] = {}  # who holds it → the clock's seconds
        self._held = False
        self._stopping: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Pauses:
        if self._engine is not None:
            for who in await asyncio.to_thread(self._before):
                log.info("%s still needs what the engine would take: it is not started yet", who)
                self._until[who] = self._clock() + FIRST_S
                self._held = True
                self._refuse(REASON)
                self._engine.hold(REASON)
        self._watch = asyncio.create_task(self._expire(), name="pauses")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._watch, self._stopping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def holders(self) -> tuple[str, ...]:
        return tuple(self._until)

    async def pause(self, who: str, seconds: float) -> None:
        """Return once the engine has ended; it stays so for `seconds`, unless this is said again before.

        Conflict where there is no engine of ours; Unavailable where it was resumed meanwhile.
        """
        if self._engine is None:
            raise Conflict(
                "This gateway started no engine, so it can stop none. Stop the engine on that GPU by hand, or let "
                "`loragate up` start it."
            )
        self._until[who] = self._clock() + min(max(seconds, SHORTEST_S), LONGEST_S)
        self._refuse(REASON)
        if not self._held and (self._stopping is None or self._stopping.done()):
            log.info("the engine is stopped for %s", who)
            self._stopping = asyncio.create_task(self._stop(self._engine), name="pause")
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        await self._engine.held()
        if who not in self._until:
            raise Unavailable("The engine was started again meanwhile. Ask again.", retry_after_s=1)

    def resume(self, who: str) -> bool:
        """It is needed no longer; False where it was not held by `who`."""
        if self._until.pop(who, None) is None or self._engine is None:
            return False
        if not self._until:
            log.info("the engine is started again")
            self._held = False
            self._engine.release()
            self._refuse("")
        return True

    async def _stop(self, engine: LocalEngine) -> None:
        """Let what is on its way come to its end, then stop the engine."""
        until = self._clock() + self._drain_s
        while self._in_flight() and self._clock() < until and self._until:  # noqa: ASYNC110  # three things end it
            await asyncio.sleep(POLL_S)
        while self._until and not self._held:  # resumed and paused again meanwhile: once more
            self._held = True
            engine.hold(REASON)
            await engine.held()

    async def _expire(self) -> None:
        """Whoever says nothing any more has been killed, or cannot reach us: the engine is not held for it."""
        while True:
            await asyncio.sleep(POLL_S)
            for who in [who for who, until in self._until.items() if until < self._clock()]:
                log.warning("%s, for which the engine was stopped, has not been heard of", who)
                self.resume(who)
