"""The training environment as commands of this machine use it, and how far what runs in it has come."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.local.display import Display
from gateway.local.environments import Environments
from gateway.local.hardware import look
from gateway.local.pins import kinds
from gateway.local.places import Places
from gateway.settings import data_dir
from training.interpreter import Interpreter


def here(flag: Path | None) -> Path:
    """The data directory."""
    return data_dir(os.environ, flag)


def interpreter(data: Path, gpus: str = "") -> Interpreter:
    """The training environment's, which is made now if need be (minutes, gigabytes, with a display)."""
    places = Places(data)
    display = Display(sys.stderr, clock=time.monotonic)
    environments = Environments(places, look(os.environ), os.environ, display, time.monotonic)
    kind = kinds()["training"]
    if environments.existing(kind) is None:
        places.prepare()
    return Interpreter(asyncio.run(environments.ensure(kind)), gpus)


class Steps:
    """Called with steps done and in all; shows them with an estimate of what is left."""

    def __init__(self, what: str, display: Display) -> None:
        self._what = what
        self._display = display
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, in_all: int) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)
        since, steps = now - self._first[0], done - self._first[1]
        left = since / steps * (in_all - done) if steps else None
        self._display.show(self._what, f"step {done} of {in_all}", left)


@contextmanager
def steps(what: str) -> Iterator[Steps]:
    """One running line on stderr while the block lasts."""
    display = Display(sys.stderr, clock=time.monotonic)
    display.show(what, "starting")
    try:
        yield Steps(what, display)
    except BaseException:
        display.end("not finished")
        raise
    display.end("done")
