"""The other gateways on the same database: told what this one serves, asked before something goes that they may use.

A heartbeat every two seconds, and one whenever the registry changed here. SQLite is for one gateway: `Alone`.
Must not know what is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Protocol

from adapters import store_gateways
from adapters.db import Database
from adapters.errors import ServiceError
from adapters.store_gateways import Peer
from adapters.traffic import ANY, Traffic

BEAT_S = 2.0
# A request whose load has just ended is for one turn of the loop neither waiting nor in flight: looked at twice.
TURN_S = 0.01
_log = logging.getLogger(__name__)


class Gateways(Protocol):
    """What may be asked of them."""

    async def done_with(self, engine_names: Collection[str], revision: int) -> bool:
        """Whether none of them may want `engine_names` any more, which had a part before `revision`."""

    async def present(self) -> bool:
        """Whether there are any."""


class Alone:
    """No other gateway can be there."""

    async def done_with(self, engine_names: Collection[str], revision: int) -> bool:
        return True

    async def present(self) -> bool:
        return False


class Heartbeat:
    """One per gateway; entered before its first look at the registry, left when nothing is in flight any more.

    gateway: its id, never used twice. revision: of the registry, as its requests see it now.
    """

    def __init__(self, db: Database, traffic: Traffic, gateway: str, revision: Callable[[], int]) -> None:
        self._db = db
        self._traffic = traffic
        self._gateway = gateway
        self._revision = revision
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._silent = False
        self.used_elsewhere: frozenset[str] = frozenset()  # engine names that others had in flight a moment ago

    async def __aenter__(self) -> Heartbeat:
        await self._beat()
        self._task = asyncio.create_task(self._run(), name="heartbeat")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(ServiceError, TimeoutError):  # the others wait until it counts as dead
            async with asyncio.timeout(BEAT_S):
                await self._db.write(lambda conn: store_gateways.leave(conn, self._gateway), aside=True)

    def changed(self) -> None:
        """Requests see something new: the others may be waiting for that."""
        self._wake.set()

    async def done_with(self, engine_names: Collection[str], revision: int) -> bool:
        try:
            others = await self._others()
        except ServiceError:
            return False  # they cannot be asked now
        names = frozenset(engine_names) | {ANY}
        return all(peer.revision >= revision and not names & peer.using for peer in others)

    async def present(self) -> bool:
        return bool(await self._others())

    async def _others(self) -> tuple[Peer, ...]:
        return await self._db.read(lambda conn: store_gateways.peers(conn, self._gateway))

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._beat()
                self._silent = False
            except ServiceError as error:
                if not self._silent:
                    _log.warning("the other gateways cannot be told that this one lives: %s", error.message)
                self._silent = True

    async def _beat(self) -> None:
        revision = self._revision()  # first: what was admitted before it is seen in the two looks
        using = self._traffic.using()
        await asyncio.sleep(TURN_S)
        using |= self._traffic.using()
        # Aside: what waits behind a long write would make the others believe that this one is dead.
        others = await self._db.write(
            lambda conn: store_gateways.beat(conn, self._gateway, revision, using), aside=True
        )
        self.used_elsewhere = frozenset().union(*(peer.using for peer in others))
