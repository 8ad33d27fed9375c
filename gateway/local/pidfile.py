"""The engine's process number on disk, so that after a kill -9 of ours the next start ends the orphan.

A number alone may belong to somebody else by then: start time and boot id must match as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from gateway.local.errors import CannotStart
from gateway.local.places import write_private
from gateway.local.process import end_tree, tree

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Record:
    """One started engine. `created` is the process's start in seconds since the epoch."""

    pid: int
    created: float
    boot: str
    port: int


def boot_id() -> str:
    """One word for this boot of this machine."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def write(path: Path, pid: int, port: int) -> Record | None:
    """Record a child that was just started; None when it has already ended."""
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    record = Record(pid, created, boot_id(), port)
    write_private(path, json.dumps(asdict(record)))
    return record


def read(path: Path) -> Record | None:
    """What was recorded, or None for no file or one that cannot be understood."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget(path: Path) -> None:
    """The recorded engine has ended."""
    path.unlink(missing_ok=True)


async def end_orphan(path: Path, *, grace_s: float = 5.0) -> int | None:
    """End what an earlier gateway left running, and return its pid; None when there was nothing.

    CannotStart when it lives on in spite of SIGKILL.
    """
    record = read(path)
    ended: int | None = None
    if record is not None and record.boot == boot_id() and tree(record.pid, created=record.created):
        if not await end_tree(record.pid, created=record.created, grace_s=grace_s):
            raise CannotStart(
                f"An engine of an earlier run (process {record.pid}) does not end. "
                f"End it with `kill -9 {record.pid}` as the user who started it, then start again."
            )
        ended = record.pid
    forget(path)
    return ended
