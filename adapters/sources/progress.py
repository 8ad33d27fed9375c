"""How far one intake is, for whoever watches, and how it is told to stop. Threads write it, the loop reads it.

Must not know what is fetched or from where.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["waiting", "receiving", "fetching", "unpacking", "checking"]


class Stopped(Exception):
    """The intake was told to stop: its caller is gone, or the gateway ends."""


@dataclass(slots=True, eq=False)
class Progress:
    """One intake. started_at: unix seconds. bytes_total: None where the source does not say."""

    id: str
    name: str | None
    source: str
    started_at: float
    phase: Phase = "waiting"
    bytes_done: int = 0
    bytes_total: int | None = None
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _interrupt: Callable[[], object] | None = field(default=None, repr=False)

    def begin(self, phase: Phase, total: int | None = None) -> None:
        """The next phase; its bytes are counted anew."""
        self.check()
        self.phase, self.bytes_done, self.bytes_total = phase, 0, total

    def expect(self, more: int | None) -> None:
        """So many bytes come on top; None: nobody knows, so there is no total."""
        if more is not None:
            self.bytes_total = (self.bytes_total or 0) + more

    def advance(self, count: int) -> None:
        """So many bytes more (or, after a fresh start, fewer); Stopped."""
        self.bytes_done += count
        self.check()

    def check(self) -> None:
        """Stopped, where that was asked for."""
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait before the next try; Stopped, at once."""
        if self._stop.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """From any thread: end at the next look, and wake whatever waits for bytes."""
        self._stop.set()
        interrupt = self._interrupt
        if interrupt is not None:
            interrupt()

    @contextmanager
    def interruptible(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """`interrupt` wakes what is done in this block; it may be called at any time, also just after it."""
        self._interrupt = interrupt
        try:
            self.check()  # told between the last look and now
            yield
        finally:
            self._interrupt = None
