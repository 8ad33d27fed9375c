"""A request's body that its app reads as it comes, in bounded memory: what has arrived and waits to be read.

One read of the socket and a little more wait at most; nothing more is read until the app has taken that. Must not know
what a body is for.
"""

from __future__ import annotations

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

WAITING_BYTES = 64 * 1024  # beyond it the socket is not read; one read that was under way comes on top


class StreamedBody:
    """One body, from the request's head to its last byte. Its app bounds what has no announced length."""

    __slots__ = ("_cycle", "_early", "_whole")

    def __init__(self) -> None:
        self._early = b""  # what came before its turn
        self._whole = False
        self._cycle: RequestResponseCycle | None = None

    def begin(self, cycle: RequestResponseCycle) -> None:
        """From now on `cycle` is given what comes."""
        self._cycle = cycle
        cycle.body, self._early = bytearray(self._early), b""
        cycle.more_body = not self._whole

    def take(self, data: bytes, flow: FlowControl) -> None:
        """The next piece."""
        cycle = self._cycle
        if cycle is None:
            self._early += data  # reading is paused until its turn comes: this is the rest of one read
        elif not cycle.response_complete:
            cycle.body += data
            cycle.message_event.set()
            if len(cycle.body) > WAITING_BYTES:
                flow.pause_reading()

    def end(self) -> None:
        """That was all of it."""
        self._whole = True
        if self._cycle is not None:
            self._cycle.more_body = False
            self._cycle.message_event.set()

    @property
    def begun(self) -> bool:
        """Whether an app reads it already."""
        return self._cycle is not None
