"""Runs one coroutine without a task: whoever has news resumes it on the spot.

A task costs a trip through the event loop for its start and for every wake-up, 5-10 µs a request here.
The coroutine may await PAUSE (until the next `resume`) and plain asyncio futures, nothing that asks for
the current task. Must not know what the coroutine does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class _Pause:
    """`await PAUSE` gives control back until somebody calls Flow.resume; check your condition in a loop."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield None


PAUSE = _Pause()


class Flow:
    __slots__ = ("_coroutine", "done")

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self.done = False

    def resume(self, _: object = None) -> None:
        """Let it run to its next await. Nothing happens if it has ended."""
        self._step(None)

    def throw(self, error: Exception) -> None:
        """Raise `error` where it waits."""
        self._step(error)

    def _step(self, error: Exception | None) -> None:
        if self.done:
            return
        try:
            waits_for = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration:
            self.done = True
            return
        except BaseException:
            self.done = True
            raise
        if waits_for is not None:
            self._await(waits_for)

    def _await(self, future: asyncio.Future[Any]) -> None:
        # The same handshake that asyncio.Task does (Lib/asyncio/tasks.py, __step).
        future._asyncio_future_blocking = False
        future.add_done_callback(self.resume)
