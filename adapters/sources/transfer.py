"""One file from elsewhere onto our disk: retries with growing pauses, goes on where it broke off, checks what came.

Must not know protocols: a Remote opens the file at an offset, however it does that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adapters.errors import AdapterRejected
from adapters.sources.incoming import check_space, disk, write_all
from adapters.sources.progress import Progress
from adapters.sources.source import SourceUnavailable

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
TRIES = 6  # in a row without a byte: 0.5 + 1 + 2 + 4 + 8 s of pauses
FIRST_TRIES = 4  # where there never was a byte: the name may be wrong, and somebody waits to hear it
BREAKS = 60  # of one file in all
FRESH_STARTS = 3  # the file changes while it is fetched, or its checksum is wrong


class Broken(Exception):
    """It may go better next time. wait_s: as long as the other side asks for. afresh: what has come is of no use."""

    def __init__(self, why: str, wait_s: float = 0.0, *, afresh: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.wait_s = wait_s
        self.afresh = afresh


class Missing(Exception):
    """There is no such file."""


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a file from `start` on.

    size: of the whole file. tag: another one means other content; None: nobody can tell. stated: what the source says
    about the content, hex digits by kind: sha256, md5, or git (sha1 of a git blob).
    """

    start: int
    size: int | None
    tag: str | None
    pieces: Iterator[bytes]
    stated: Mapping[str, str] = field(default_factory=dict)


class Remote(Protocol):
    """A file elsewhere. `label` is for people, without secrets."""

    @property
    def label(self) -> str: ...

    def open(self, at: int, tag: str | None, progress: Progress) -> AbstractContextManager[Body]:
        """Open it from byte `at` if it is still what `tag` says, else from 0; Broken, Missing, SourceRefused."""
        ...


def fetch(
    remote: Remote, into: Path, limit: int, progress: Progress, first_pause_s: float = FIRST_PAUSE_S
) -> dict[str, str]:
    """Fetch `remote` into the new file `into`; its checksums, sha256 among them. Blocking.

    Raises AdapterRejected (larger than `limit` bytes), Missing, SourceRefused, SourceUnavailable, StorageFull, Stopped.
    """
    with disk():
        file = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return _Transfer(remote, file, into, limit, progress, first_pause_s).run()
    finally:
        os.close(file)


class _Transfer:
    def __init__(
        self, remote: Remote, file: int, into: Path, limit: int, progress: Progress, first_pause_s: float
    ) -> None:
        self._remote = remote
        self._file = file
        self._into = into
        self._limit = limit
        self._progress = progress
        self._first_pause_s = first_pause_s
        self._at = 0
        self._announced = False
        self._reached = False
        self._tag: str | None = None
        self._hashes: dict[str, hashlib._Hash] = {}
        self._lost = 0

    def run(self) -> dict[str, str]:
        idle, breaks = 0, 0
        while True:
            before = self._at
            try:
                return self._once()
            except Broken as broken:
                breaks += 1
                idle = 0 if self._at > before else idle + 1
                if broken.afresh:
                    self._forget()
                tries = TRIES if self._reached else FIRST_TRIES
                if idle >= tries or breaks >= BREAKS or self._lost > FRESH_STARTS:
                    raise SourceUnavailable(
                        f"{self._remote.label} could not be fetched: {broken.why}. Try again later."
                    ) from None
                pause_s = min(self._first_pause_s * 2 ** max(idle - 1, 0), LONGEST_PAUSE_S)
                self._progress.pause(max(broken.wait_s, pause_s))

    def _once(self) -> dict[str, str]:
        with self._remote.open(self._at, self._tag, self._progress) as body:
            if self._at and (body.start != self._at or body.tag != self._tag):
                self._forget()
            if self._at == 0:
                self._begin(body)
            for piece in body.pieces:
                self._take(piece)
        if body.size is not None and self._at != body.size:
            raise Broken("the connection ended in the middle")
        found = {kind: digest.hexdigest() for kind, digest in self._hashes.items()}
        for kind, stated in body.stated.items():
            if found.get(kind, stated) != stated:
                raise Broken(f"what arrives is not what its {kind} checksum says", afresh=True)
        return found

    def _forget(self) -> None:
        self._progress.advance(-self._at)
        self._at = 0
        self._lost += 1

    def _begin(self, body: Body) -> None:
        if body.start != 0:
            raise Broken("the server answers with another part than was asked for")
        if body.size is not None:
            if body.size > self._limit:
                self._refuse()
            check_space(self._into.parent, body.size)
            if not self._announced:
                self._progress.expect(body.size)
                self._announced = True
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._tag = body.tag
        self._hashes = {"sha256": hashlib.sha256()}
        if "md5" in body.stated:
            self._hashes["md5"] = hashlib.md5(usedforsecurity=False)
        if "git" in body.stated and body.size is not None:
            self._hashes["git"] = hashlib.sha1(b"blob %d\0" % body.size, usedforsecurity=False)

    def _take(self, piece: bytes) -> None:
        if self._at + len(piece) > self._limit:
            self._refuse()
        write_all(self._file, piece)
        for digest in self._hashes.values():
            digest.update(piece)
        self._at += len(piece)
        self._reached = True
        self._progress.advance(len(piece))

    def _refuse(self) -> None:
        raise AdapterRejected(
            f"{self._remote.label} has more than {self._limit} bytes. Check that it is a LoRA.", reason="too_large"
        )
