"""Weights on their way into engines and out of them: brought before a name points at them, retired when none does.

Nothing leaves an engine while a request may want it, and no file goes before: vLLM reads weights again that it has put
out of its slots, and dies when they are gone (tried). Must not know names, aliases or who asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine
from contextlib import suppress
from typing import Any

from adapters import revision, store
from adapters.db import Database
from adapters.engine import EngineUnreachable
from adapters.errors import Conflict, EngineError, Saturated, ServiceError
from adapters.gateways import Gateways
from adapters.reconcile import Reconciler
from adapters.shelf import Shelf
from adapters.traffic import Traffic

POLL_S = 0.25
ASK_S = 0.5  # how often the other gateways are looked up
ROOM_S = 30.0  # how long an operator's move waits until some engine has room
DRAIN_S = 300.0  # a version that answers nobody anew is waited for so long to end, then it stays loaded
ENDLESS_S = 3600.0  # no request lives longer: 131,072 tokens at 40 a second
_log = logging.getLogger(__name__)


class Swap:
    """One per gateway; closed by whoever opened it. drain_s: how long what has no part any more is waited for."""

    def __init__(
        self,
        db: Database,
        shelf: Shelf,
        reconciler: Reconciler,
        traffic: Traffic,
        gateways: Gateways,
        *,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._db = db
        self._shelf = shelf
        self._reconciler = reconciler
        self._traffic = traffic
        self._gateways = gateways
        self._drain_s = drain_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop waiting for requests to end; what was not deleted yet is swept at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def bring(self, engine_name: str, like: str | None, then: str) -> None:
        """Have it loaded and proven where `like` answers now; engines without room get it when it is asked for there.

        then: what the refusal ends with. EngineError where an engine refuses it, or none has it.
        """
        outcomes = (await self._reconciler.load_on(engine_name, like, wait_s=ROOM_S)).values()
        for error in outcomes:
            # One that is full gets it when it is asked for there, one that went away when it is back.
            if error is not None and (None not in outcomes or not isinstance(error, (Saturated, EngineUnreachable))):
                raise EngineError(f"{error.message} {then}")

    def retire(self, engine_names: Collection[str]) -> None:
        """Unload what has no part any more, once the requests of before are over, and see that it is gone."""
        for name in engine_names:
            self._start(self._retire(name))

    async def discard(self, engine_names: Collection[str]) -> None:
        """Unload what the registry no longer knows and delete its files: now, or once no request can want them.

        Not before that: a name that is unloaded under a running request and loaded again ends the engine (tried).
        """
        since = await revision.current(self._db)
        if await self._unused(engine_names, since):
            for name in sorted(engine_names):
                await self._reconciler.unload_everywhere(name)
            await self._delete(engine_names)
        else:
            self._start(self._discard_later(frozenset(engine_names), since))

    def discard_later(self, engine_names: Collection[str]) -> None:
        """The same, without waiting for anything now: what another gateway may still be at."""
        self._start(self._discard_later(frozenset(engine_names), None))

    async def at_rest(self, engine_name: str) -> bool:
        """Wait until no request runs on it, for a while; whether that came."""
        since = await revision.current(self._db)
        await self._until_unused([engine_name], since, ROOM_S)
        return await self._unused([engine_name], since)

    async def _retire(self, engine_name: str) -> None:
        with suppress(ServiceError):  # it stays loaded until another needs its place
            since = await revision.current(self._db)
            until = asyncio.get_running_loop().time() + self._drain_s
            while not await self._let_go(engine_name, since, until):
                pass

    async def _let_go(self, engine_name: str, since: int, until: float) -> bool:
        """Unload it where it has no part and nothing runs on it; False where it was asked for in that moment."""
        now = asyncio.get_running_loop().time
        await self._until_unused([engine_name], since, until - now())
        if engine_name not in await self._db.read(lambda conn: store.without_part(conn, [engine_name])):
            return True
        if not await self._unused([engine_name], since):  # unloaded now and loaded again it would end the engine
            _log.warning("%s has no part any more, and still answers after %g s", engine_name, self._drain_s)
            return True
        outcomes = await self._reconciler.unload_everywhere(engine_name)
        if any(isinstance(error, Conflict) for error in outcomes.values()):
            await asyncio.sleep(POLL_S)
            return now() >= until
        still = await self._reconciler.who_lists(engine_name)
        if still:
            _log.warning("%s was unloaded, and is still listed by %s", engine_name, ", ".join(still))
        return True

    async def _discard_later(self, engine_names: frozenset[str], since: int | None) -> None:
        with suppress(ServiceError):  # swept at the next start
            since = await revision.current(self._db) if since is None else since
            await self._until_unused(engine_names, since, ENDLESS_S)
            known = await self._db.read(lambda conn: store.known(conn, engine_names))
            for name in sorted(engine_names - known):
                await self._reconciler.unload_everywhere(name)
            await self._delete(engine_names)

    async def _until_unused(self, engine_names: Collection[str], since: int, longest_s: float) -> None:
        """Until no gateway may send a request for them: they had a part before the revision `since`."""
        for _ in range(int(longest_s / POLL_S)):
            if not self._in_use(engine_names):
                if await self._gateways.done_with(engine_names, since):
                    return
                await asyncio.sleep(ASK_S - POLL_S)
            await asyncio.sleep(POLL_S)

    async def _unused(self, engine_names: Collection[str], since: int) -> bool:
        return not self._in_use(engine_names) and await self._gateways.done_with(engine_names, since)

    def _in_use(self, engine_names: Collection[str]) -> bool:
        return any(self._traffic.in_use(name) for name in engine_names)

    async def _delete(self, engine_names: Collection[str]) -> None:
        loop = asyncio.get_running_loop()

        def is_known(name: str) -> bool:
            """Asked by the thread that holds the lock of the folder."""
            known = self._db.read(lambda conn: store.known(conn, [name]))
            return name in asyncio.run_coroutine_threadsafe(known, loop).result()

        for name in sorted(engine_names):
            await asyncio.to_thread(self._shelf.remove, name, is_known)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="swap")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
