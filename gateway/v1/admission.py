"""Bounded admission: at most N requests in flight, a short queue with a deadline, the rest refused at once.

Must not know what a request is: it holds callbacks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.errors import Overloaded


class Ticket:
    """A place in the queue. `admitted` once a place in flight is its own, `expired` once it waited too long."""

    __slots__ = ("_wake", "admitted", "deadline", "expired", "left")

    def __init__(self, wake: Callable[[], None], deadline: float) -> None:
        self._wake = wake
        self.deadline = deadline
        self.admitted = False
        self.expired = False
        self.left = False

    def admit(self) -> None:
        self.admitted = True
        self._wake()

    def expire(self) -> None:
        self.expired = True
        self._wake()


class Admission:
    def __init__(self, max_in_flight: int, max_queue: int, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._max_in_flight = max_in_flight
        self._max_queue = max_queue
        self._timeout_s = timeout_s
        self._loop = loop
        self._queue: deque[Ticket] = deque()
        self._handed = 0  # places on their way to somebody, who is in the queue no more
        self.in_flight = 0

    def enter(self, wake: Callable[[], None], now: float) -> Ticket | None:
        """None: go on, the place is yours. A Ticket: wait until it is admitted or expired. Overloaded: no room."""
        if self.in_flight < self._max_in_flight:
            self.in_flight += 1
            return None
        if len(self._queue) >= self._max_queue:
            raise overloaded()
        ticket = Ticket(wake, now + self._timeout_s)
        self._queue.append(ticket)
        return ticket

    def has_queue(self) -> bool:
        return len(self._queue) > 0 or self._handed > 0

    def leave(self) -> None:
        """Give the place back; the next in the queue gets it."""
        while self._queue:
            ticket = self._queue.popleft()
            if not ticket.left and not ticket.expired:
                # Through the loop, not on the spot: a chain of short requests would nest as deep as the queue.
                self._handed += 1
                self._loop.call_soon(self._hand_over, ticket)
                return
        self.in_flight -= 1

    def _hand_over(self, ticket: Ticket) -> None:
        try:
            if ticket.left or ticket.expired:
                self.leave()
            else:
                ticket.admit()
        finally:
            self._handed -= 1

    def sweep(self, now: float) -> None:
        """Expire whoever has waited too long; the queue is in order of deadlines."""
        while self._queue and (self._queue[0].left or self._queue[0].deadline <= now):
            ticket = self._queue.popleft()
            if not ticket.left:
                ticket.expire()


def overloaded() -> Overloaded:
    return Overloaded("The gateway has as many requests as it can take. Try again in a moment.", retry_after_s=1)
