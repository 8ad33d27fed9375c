"""What a waiting person sees: what is being done, how far, for how long, and about how long still.

One line that is rewritten on a terminal; elsewhere a plain line now and then. Knows no task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

EVERY_S = 5.0  # between two plain lines of the same task when nobody watches a terminal
REDRAW_S = 0.1


class Display:
    """`show` as often as you like; `end` closes the running line with a last word."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float], terminal: bool | None = None) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty() if terminal is None else terminal
        self._what = ""
        self._began = 0.0
        self._drawn: float | None = None

    def show(self, what: str, far: str = "", left_s: float | None = None) -> None:
        """`what` is being done, `far` says how far, `left_s` is the estimate in seconds."""
        now = self._clock()
        if what != self._what:
            if self._what:
                self.end()
            self._what, self._began, self._drawn = what, now, None
        if self._drawn is not None and now - self._drawn < (REDRAW_S if self._terminal else EVERY_S):
            return
        self._drawn = now
        parts = [far, spell(now - self._began)]
        if left_s is not None and left_s >= 1:
            parts.append(f"about {spell(left_s)} left")
        line = f"{what}: {', '.join(part for part in parts if part)}"
        self._write(f"\r\x1b[2K{line[:118]}" if self._terminal else f"{line}\n")

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


def spell(seconds: float) -> str:
    """`8 s`, `3 min 20 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"
