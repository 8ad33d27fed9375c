"""Bytes of one file on their way to disk: counted, hashed, bounded, fsynced. Must not know what becomes of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from adapters.errors import InvalidRequest, StorageFull


class Incoming:
    """Bytes on their way to disk, counted and hashed. `room`: at most so many."""

    def __init__(self, file: BinaryIO, room: int, file_id: str, filename: str, purpose: str, owner: str | None) -> None:
        self._file = file
        self._room = room
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.file_id = file_id
        self.filename = filename
        self.purpose = purpose
        self.owner = owner

    async def write(self, chunk: bytes) -> None:
        """InvalidRequest where it is more than may come, StorageFull."""
        self.bytes += len(chunk)
        if self.bytes > self._room:
            raise InvalidRequest(
                f"The file is larger than the {self._room} bytes that it may take. Split it, or delete others.",
                param="file",
            )
        await asyncio.to_thread(self._write, chunk)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def settle(self) -> None:
        """Everything written is on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise _full(exc) from None
        self._file.close()

    def close(self) -> None:
        """Also after `settle`."""
        self._file.close()

    def _write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as exc:
            raise _full(exc) from None


def create(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
    except OSError as exc:
        raise _full(exc) from None


def _full(exc: OSError) -> StorageFull:
    return StorageFull(f"The file cannot be written to the data directory: {exc.strerror}. Free some space there.")
