"""Uploaded files: streamed to disk as they come, kept under their id, and forgotten row first.

The row is written once the bytes are fsynced: what was acknowledged is there after any crash, and bytes without a row
are swept at the next start. Must not know HTTP or what is in a file.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from adapters.db import Database
from adapters.errors import Conflict, InvalidRequest
from training import store_files as store
from training.errors import FileMissing
from training.ids import mint
from training.incoming import Incoming, create
from training.types import FileStatus, StoredFile

MAX_FILE_BYTES = 512 * 1024 * 1024  # OpenAI's own bound for fine-tuning
PREFIX = "file-"
RESULTS = "fine-tune-results"  # the purpose of what a job leaves
STRAY_S = 3600.0  # bytes without a row that nobody has touched for so long belong to nobody


class Files:
    """owner_bytes_max: what all files of one key may take together, in bytes."""

    def __init__(
        self,
        db: Database,
        folder: Path,
        *,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        owner_bytes_max: int = 8 * 1024**3,
    ) -> None:
        self._db = db
        self._folder = folder
        self._clock = clock
        self._random_bytes = random_bytes
        self._owner_bytes_max = owner_bytes_max

    async def recover(self) -> tuple[str, ...]:
        """At start, and now and then: delete bytes that no row knows; their names. The newest may still become files,
        of this process or of a worker."""
        known = await self._db.read(store.known)
        return await asyncio.to_thread(self._sweep, known, self._clock() - STRAY_S)

    @asynccontextmanager
    async def receiving(self, filename: str, purpose: str, owner: str | None) -> AsyncIterator[Incoming]:
        """A file that comes; nothing is left of it where the block ends without `kept`.

        A job's results always have room: they are small, and no full shelf may end a job that was trained.
        """
        bounded = owner is not None and purpose != RESULTS
        taken = await self._db.read(lambda conn: store.taken_bytes(conn, str(owner))) if bounded else 0
        room = min(MAX_FILE_BYTES, self._owner_bytes_max - taken) if bounded else MAX_FILE_BYTES
        if room <= 0:
            raise self._too_much(taken)
        file_id = mint(PREFIX, self._random_bytes)
        temporary = self._folder / f".{file_id}.part"
        incoming = Incoming(await asyncio.to_thread(create, temporary), room, file_id, filename, purpose, owner)
        try:
            yield incoming
        finally:
            incoming.close()
            temporary.unlink(missing_ok=True)

    async def keep(self, incoming: Incoming, expires_after_s: float | None = None) -> StoredFile:
        """The whole of it is there: on disk for good, then known. StorageFull."""
        await asyncio.to_thread(incoming.settle)
        path = self.path(incoming.file_id)
        now = self._clock()
        made = StoredFile(
            id=incoming.file_id,
            owner=incoming.owner,
            purpose=incoming.purpose,
            filename=incoming.filename,
            bytes=incoming.bytes,
            digest=incoming.digest,
            status=FileStatus.UPLOADED,
            created_at=now,
            expires_at=now + expires_after_s if expires_after_s is not None else None,
        )
        await asyncio.to_thread(os.replace, self._folder / f".{incoming.file_id}.part", path)
        bounded = made.owner is not None and made.purpose != RESULTS
        try:
            most = self._owner_bytes_max if bounded else None
            taken = await self._db.write(lambda conn: store.add_within(conn, made, most))
            if taken is not None:
                raise self._too_much(taken)  # others came in while this one did
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return made

    async def show(self, file_id: str, owner: str | None = None) -> StoredFile:
        """FileMissing, also for one whose time has come."""
        found = await self._db.read(lambda conn: store.find(conn, file_id, owner))
        if found.expires_at is not None and found.expires_at <= self._clock():
            raise FileMissing(f"No such File object: {file_id[:64]}", param="id")
        return found

    async def list(
        self, *, owner: str | None, purpose: str | None, after: str | None, limit: int, newest_first: bool = True
    ) -> tuple[tuple[StoredFile, ...], bool]:
        """Files behind the file `after`, and whether there are more. FileMissing."""
        return await self._db.read(
            lambda conn: store.page(
                conn, owner=owner, purpose=purpose, after=after, limit=limit, newest_first=newest_first
            )
        )

    async def set_status(self, file_id: str, status: FileStatus, details: str | None = None) -> None:
        """What the check of its content said."""
        await self._db.write(lambda conn: store.set_status(conn, file_id, status, details))

    async def remove(self, file_id: str, owner: str | None = None) -> None:
        """Row first, then bytes. FileMissing. Jobs that run have their own copy."""
        await self._db.write(lambda conn: store.remove(conn, file_id, owner))
        await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)

    async def remove_expired(self) -> tuple[str, ...]:
        """Delete every file whose time has come; their ids."""
        now = self._clock()
        gone = await self._db.read(lambda conn: store.expired(conn, now))
        for file_id in gone:
            with suppress(FileMissing):  # its owner was quicker
                await self.remove(file_id)
        return gone

    def path(self, file_id: str) -> Path:
        """Where the bytes of a known file lie; Conflict for what is no file's id."""
        if not file_id.startswith(PREFIX) or not file_id[len(PREFIX) :].isalnum():
            raise Conflict("This is no file's id.")
        return self._folder / file_id

    def _too_much(self, taken: int) -> InvalidRequest:
        return InvalidRequest(
            f"This key's files take {taken} bytes, and {self._owner_bytes_max} are allowed. Delete some first.",
            param="file",
        )

    def _sweep(self, known: frozenset[str], before: float) -> tuple[str, ...]:
        if not self._folder.is_dir():
            return ()
        strays = [path for path in self._folder.iterdir() if path.name not in known]
        gone = [path for path in strays if _touched(path) < before]
        for path in gone:
            path.unlink(missing_ok=True)
        return tuple(path.name for path in gone)


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # somebody was quicker
        return math.inf
