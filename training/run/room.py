"""Memory that the engine beside gives up for a run: asked for, held while the trainer runs, and given back.

It is said again and again that the room is needed, so that the engine comes back by itself when nobody is there to say
so any more. Must not know how an engine is stopped, or whether there is one.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

from adapters.errors import ServiceError
from training.steps import Steps
from training.types import Job

LEASE_S = 60.0  # a worker that was killed is started again long before
_log = logging.getLogger(__name__)


class Room:
    """For the block around one run. At its end the engine may start again, unless the run goes on without us."""

    def __init__(self, steps: Steps, job: Job, lease_s: float = LEASE_S) -> None:
        self._steps = steps
        self._job = job
        self._lease_s = lease_s
        self._holding: asyncio.Task[None] | None = None

    @property
    def taken(self) -> bool:
        return self._holding is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holding is None:
            return
        self._holding.cancel()
        await asyncio.gather(self._holding, return_exceptions=True)
        self._holding = None
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            return  # the trainer goes on, and whoever finds it says so again
        try:
            await self._steps.give_back(self._job)
        except ServiceError as exc:
            _log.warning("the engine that was stopped for %s comes back by itself: %s", self._job.id, exc.message)

    async def take(self) -> bool:
        """Return once the engine has ended; False where nobody agreed to that. What `borrow` raises."""
        if self._holding is None and await self._steps.borrow(self._job, self._lease_s):
            self._holding = asyncio.create_task(self._hold(self._lease_s / 4), name="room")
        return self.taken

    def hold(self) -> None:
        """An earlier worker took it: go on to say so."""
        if self._holding is None:
            self._holding = asyncio.create_task(self._hold(0.0), name="room")

    async def _hold(self, first_s: float) -> None:
        await asyncio.sleep(first_s)
        while True:
            try:
                await self._steps.borrow(self._job, self._lease_s)
            except ServiceError as exc:  # a gateway that restarts: the next time
                _log.warning("it cannot be said that %s needs the engine's memory: %s", self._job.id, exc.message)
            await asyncio.sleep(self._lease_s / 4)
