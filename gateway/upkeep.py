"""Now and then: what has had its time is deleted: files, bytes of no file, previews of jobs that have ended.

Must not know requests.
"""

from __future__ import annotations

import asyncio
import logging

from adapters.errors import ServiceError
from training.files import Files
from training.previews import Previews

log = logging.getLogger("loragate.upkeep")

EVERY_S = 5.0
SWEEP_TURNS = 720  # an hour


class Upkeep:
    def __init__(self, files: Files, previews: Previews, *, every_s: float = EVERY_S) -> None:
        self._files = files
        self._previews = previews
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._turns = 0
        self._troubled = False

    async def __aenter__(self) -> Upkeep:
        self._task = asyncio.create_task(self._run(), name="upkeep")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def turn(self) -> None:
        """Once. ServiceError, OSError."""
        await self._files.remove_expired()
        await self._previews.sweep()
        if self._turns % SWEEP_TURNS == 0:
            await self._files.recover()
        self._turns += 1

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
                self._troubled = False
            except (ServiceError, OSError) as error:  # the next turn may go well, and no request hangs on it
                if not self._troubled:
                    log.warning("files and previews cannot be looked after now: %s", type(error).__name__)
                self._troubled = True
            await asyncio.sleep(self._every_s)
