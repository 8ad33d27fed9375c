"""What a waiting person sees: what is being done, how far, for how long, and about how long still.

One line that is rewritten on a terminal, never wider than it; elsewhere a plain line now and then. Knows no task.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

EVERY_S = 5.0  # between two plain lines of the same task when nobody watches a terminal
REDRAW_S = 0.1


class Display:
    """`show` as often as you like; `end` closes the running line with a last word."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float],
        terminal: bool | None = None,
        columns: Callable[[], int] | None = None,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty() if terminal is None else terminal
        self._columns = columns or (lambda: columns_of(stream))
        self._what = ""
        self._began = 0.0
        self._drawn: float | None = None

    def show(self, what: str, far: str = "", left_s: float | None = None, *, also: str = "") -> None:
        """`what` is being done, `far` says how far, `left_s` is the estimate in seconds; `also` where there is room."""
        now = self._clock()
        if what != self._what:
            if self._what:
                self.end()
            self._what, self._began, self._drawn = what, now, None
        if self._drawn is not None and now - self._drawn < (REDRAW_S if self._terminal else EVERY_S):
            return
        self._drawn = now
        left = f"about {roughly(left_s)} left" if left_s is not None and left_s >= 1 else ""
        spent = spell(now - self._began)
        lines = [_line(what, *parts) for parts in ((far, also, spent, left), (far, spent, left), (far, spent))]
        if self._terminal:
            # A line that wraps cannot be rewritten: each redraw would scroll the screen by one more.
            width = self._columns() - 1
            fitting = next((line for line in lines if len(line) <= width), lines[-1][:width])
            self._write(f"\r\x1b[2K{fitting}")
        else:
            self._write(f"{lines[0]}\n")

    def end(self, last: str = "done") -> None:
        """Close the running task's line; nothing when no task is running."""
        if not self._what:
            return
        line = f"{self._what}: {last}, {spell(self._clock() - self._began)}\n"
        self._what = ""
        self._write(f"\r\x1b[2K{line}" if self._terminal else line)

    def say(self, line: str) -> None:
        """One line of its own; a running task's line is drawn again at its next `show`."""
        self._drawn = None
        self._write(f"\r\x1b[2K{line}\n" if self._terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def columns_of(stream: TextIO) -> int:
    """The width of the stream's terminal; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _line(what: str, *parts: str) -> str:
    return f"{what}: {', '.join(part for part in parts if part)}"


def roughly(seconds: float) -> str:
    """An estimate claims no more than it knows: `40 s`, `3 min`."""
    return spell(seconds) if round(seconds) < 120 else f"{round(seconds / 60)} min"


def spell(seconds: float) -> str:
    """`8 s`, `3 min 20 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"
