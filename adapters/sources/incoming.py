"""Folders for what is on its way in, beside the store's own drafts: locked while used, gone afterwards.

A crash leaves a `.draft-…` folder without a lock, which the store's sweep deletes at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from adapters.errors import ServiceError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Draft:
    """A new, locked, private folder below `root`; StorageFull, ServiceError. `close` deletes it with all it holds."""

    def __init__(self, root: Path) -> None:
        with disk():
            root.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.folder = root / f".draft-in-{secrets.token_hex(8)}"
            self.folder.mkdir(mode=0o700)
            self._lock: int | None = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete it; may be repeated."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


@contextmanager
def disk() -> Iterator[None]:
    """What writing to disk raises, as errors of ours."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFull("The disk of the data directory is full. Free space, then try again.") from None
        raise ServiceError(f"The data directory cannot be written ({exc.strerror}). Check who owns it.") from exc


def check_space(folder: Path, wanted: int) -> None:
    """StorageFull before the first byte of what cannot fit."""
    if shutil.disk_usage(folder).free < wanted:
        raise StorageFull(f"The adapter has {wanted} bytes and the disk has less. Free space, then try again.")


def write_all(file: int, data: bytes) -> None:
    """All of `data`: a disk that is nearly full takes a part, and refuses the rest. StorageFull."""
    with disk():
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
