"""How far an adapter is on its way, for whoever waits at a terminal: a bar on stderr, nothing anywhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gateway.cli.output import size

POLL_S = 0.5
PHASES = {
    "waiting": "Waiting for its turn",
    "receiving": "Sending",
    "fetching": "Fetching",
    "unpacking": "Unpacking",
    "checking": "Checking",
}
LOADS = {**PHASES, "checking": "Checking and loading"}  # registering goes on with that


class Bar:
    """One line that follows phases; bytes where there are any, and how long they will take."""

    def __init__(self, live: Any, phases: Mapping[str, str] = PHASES) -> None:
        self._live = live
        self._phases = phases
        self._phase = ""
        self._task: Any = None

    def show(self, phase: str, done: int, total: int | None) -> None:
        """From any thread."""
        if self._live is None:
            return
        if phase != self._phase:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._phase, self._task = (
                phase,
                self._live.add_task(self._phases.get(phase, phase), total=total, figures=""),
            )
        self._live.update(self._task, completed=done, total=total or None)
        (task,) = self._live.tasks
        self._live.update(self._task, figures=figures(done, total, task.speed, task.time_remaining))


def figures(done: int, total: int | None, speed: float | None, left_s: float | None) -> str:
    """`120 MB of 1.2 GB, 40 MB/s, 27 s left`, as far as it is known; nothing where no bytes are counted."""
    if not done:
        return ""
    parts = [size(done) + (f" of {size(total)}" if total else "")]
    parts += [f"{size(speed)}/s"] if speed else []
    parts += [f"{left_s:.0f} s left"] if left_s else []
    return ", ".join(parts)


@contextmanager
def bar(*, loads: bool = True) -> Iterator[Bar]:
    """A bar, which goes away at the end; silent where stderr is no terminal. loads: whether engines get it then."""
    if not sys.stderr.isatty():
        yield Bar(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        yield Bar(live, LOADS if loads else PHASES)


@contextmanager
def watched(ask: Callable[[], dict[str, Any]], name: str | None, shown: Bar) -> Iterator[None]:
    """While the block waits for the gateway's answer: show what the gateway says about this intake.

    ask: GET /admin/v1/intakes, from another thread.
    """
    over = threading.Event()

    def follow() -> None:
        while not over.wait(POLL_S):
            try:
                found = [each for each in ask()["data"] if each["name"] == name]
            except Exception:  # the bar is a courtesy: whatever is wrong, the answer itself will say
                return
            if found:
                shown.show(found[-1]["phase"], found[-1]["bytes_done"], found[-1]["bytes_total"])

    if not sys.stderr.isatty():
        yield
        return
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(POLL_S)
