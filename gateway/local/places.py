"""Where everything of this machine lies under the data directory, and whether there is room to write it.

Names files only: what is in them belongs to the modules that write them.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import StorageFull
from gateway.local.errors import CannotStart

GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one data directory; nothing is made until `prepare`."""

    data: Path

    @property
    def lock(self) -> Path:
        return self.data / "loragate.lock"

    @property
    def engine_pid(self) -> Path:
        return self.data / "engine.pid"

    @property
    def engine_log(self) -> Path:
        return self.data / "logs" / "engine.log"

    @property
    def gateway_log(self) -> Path:
        return self.data / "logs" / "gateway.log"

    @property
    def worker_log(self) -> Path:
        return self.data / "logs" / "worker.log"

    @property
    def timings(self) -> Path:
        return self.data / "timings.json"

    @property
    def environments(self) -> Path:
        return self.data / "environments"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def adapters(self) -> Path:
        return self.data / "adapters"

    @property
    def admin_key(self) -> Path:
        return self.data / "admin.key"

    @property
    def demo_key(self) -> Path:
        return self.data / "demo.key"

    @property
    def demo_stamp(self) -> Path:
        return self.data / "demo.json"

    def prepare(self) -> None:
        """Make the directories (0700 at the top) and write one byte; CannotStart or StorageFull in a sentence."""
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.engine_log.parent, self.environments, self.models, self.adapters):
                folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.data) as probe:
                probe.write(b"x")
        except OSError as exc:
            raise unwritable(self.data, exc) from None


def unwritable(data: Path, exc: OSError) -> CannotStart | StorageFull:
    """Why nothing can be written to `data`, and what to do about it."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"The disk of the data directory {data} is full. Free some space there, or name a data directory on "
            "another disk with --data-dir or LORAGATE_HOME."
        )
    reason = "it is a file" if data.exists() and not data.is_dir() else exc.strerror or str(exc)
    return CannotStart(
        f"Cannot write to the data directory {data}: {reason}. "
        "Name another with --data-dir or LORAGATE_HOME, or give this user the right to write there."
    )


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the disk that holds `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def need_space(path: Path, need: int, what: str) -> None:
    """StorageFull when fewer than `need` bytes are free at `path`."""
    free = free_bytes(path)
    if free < need:
        raise StorageFull(
            f"{what} needs {need / GB:.0f} GB of disk and {path} has {free / GB:.1f} GB free. "
            "Free some space there, or name a data directory on another disk with --data-dir or LORAGATE_HOME."
        )


def write_private(path: Path, text: str) -> None:
    """Write a small file that only its owner may read (0600), whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
