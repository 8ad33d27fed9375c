"""One holder at a time: a file lock that the kernel drops when its holder dies, kill -9 included.

The file carries the holder's pid for the sentence only; the lock itself is what counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.local.errors import AlreadyRunning, PlatformUnsupported


@contextmanager
def hold(path: Path, taken: str) -> Iterator[None]:
    """Hold `path` for the block; AlreadyRunning with `taken` (its `{pid}` filled in) when another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows: said here, so that `doctor` and `--help` still work there
        raise PlatformUnsupported(
            "loragate needs Linux or macOS on this side. On Windows run it inside WSL2."
        ) from None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise AlreadyRunning(taken.format(pid=holder)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: removing it would let two holders lock two different files
