"""The two files of an adapter out of an archive, as regular files under names of ours: nothing is ever "extracted".

Names in the archive are only compared, never opened; every size is counted as it comes. The formats themselves are
tarball.py's and zipball.py's.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from adapters import folder
from adapters.errors import AdapterRejected, ServiceError
from adapters.sources import tarball, zipball
from adapters.sources.incoming import disk, write_all
from adapters.sources.member import Caps, Member, damaged, unsafe
from adapters.sources.progress import Progress, Stopped

_LIMITS: Mapping[str, int] = {folder.CONFIG: folder.MAX_CONFIG_BYTES, folder.WEIGHTS: folder.MAX_WEIGHTS_BYTES}
_FINDER = re.compile(r"__MACOSX|\._.*|\.DS_Store")  # what macOS adds to every archive
_ONE = "Pack the folder of one adapter."


@dataclass(frozen=True, slots=True)
class Unpacked:
    """folder: where the two files are now. checksums: their sha256, 64 hex digits, by file name."""

    folder: Path
    checksums: Mapping[str, str]


def unpack(file: BinaryIO, label: str, into: Path, progress: Progress, caps: Caps | None = None) -> Unpacked:
    """Take the two files out of the archive `file` into new folders below `into` (of ours, empty).

    label: what a person calls the archive. Blocking. AdapterRejected, StorageFull; whoever owns `into` deletes it.
    """
    caps = caps or Caps()
    size = os.fstat(file.fileno()).st_size
    progress.begin("unpacking", size)
    layout = _Layout(label, into, caps)
    try:
        for member in _members(file, caps):
            progress.bytes_done = min(size, file.tell())
            progress.check()
            layout.take(member, progress)
    except (ServiceError, Stopped):
        raise
    except Exception as exc:  # whatever the readers of two formats may raise on bytes from elsewhere
        raise damaged(f"it cannot be read to its end ({type(exc).__name__})") from None
    return layout.settle()


def _members(file: BinaryIO, caps: Caps) -> Iterator[Member]:
    begin = file.read(4)
    file.seek(0)
    if begin[:2] == b"PK":
        return zipball.members(file, caps)
    return tarball.members(file, caps, gzipped=begin[:2] == b"\x1f\x8b")


@dataclass(slots=True)
class _Layout:
    """Which entries there are, and the files taken so far: those at the top, and those in one folder there."""

    label: str
    into: Path
    caps: Caps
    seen: set[tuple[str, ...]] = field(default_factory=set)
    taken: dict[str, dict[str, str]] = field(default_factory=dict)  # folder at the top, or "" → file → sha256
    total: int = 0

    def take(self, member: Member, progress: Progress) -> None:
        """Judge one entry, and keep it where it is one of the two files."""
        parts = _parts(member.name)
        self.total += member.size
        if self.total > self.caps.total:
            raise _too_large(f"it unpacks to more than {self.caps.total} bytes")
        if not parts or any(_FINDER.fullmatch(part) for part in parts):
            return
        if parts in self.seen and not member.is_folder:
            raise unsafe(f"it holds {member.name[:80]!r} twice")
        self.seen.add(parts)
        if len(self.seen) > self.caps.entries:
            raise _too_large(f"it has more than {self.caps.entries} entries")
        if member.is_folder or len(parts) > 2 or parts[-1] not in _LIMITS:
            return
        top = parts[0] if len(parts) == 2 else ""
        if top and any(name for name in self.taken if name != top):
            self.taken.setdefault(top, {})  # only to be named: two adapters, or checkpoints beside one
            return
        self.taken.setdefault(top, {})[parts[-1]] = self._write(member, top, parts[-1], progress)

    def _write(self, member: Member, top: str, name: str, progress: Progress) -> str:
        limit = min(_LIMITS[name], self.caps.file)
        if member.size > limit:
            raise _too_large(f"{name} has more than {limit} bytes")
        where = self.into / ("below" if top else "top")
        digest, size = hashlib.sha256(), 0
        with disk():
            where.mkdir(mode=0o700, exist_ok=True)
            file = os.open(where / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for piece in member.pieces:
                size += len(piece)
                if size > limit:
                    raise _too_large(f"{name} has more than {limit} bytes")
                digest.update(piece)
                write_all(file, piece)
                progress.check()
        finally:
            os.close(file)
        if size != member.size:
            raise damaged(f"{name} has {size} bytes and was announced with {member.size}")
        return digest.hexdigest()

    def settle(self) -> Unpacked:
        """The folder that holds the adapter, judged by the same names as a folder on disk."""
        tops = sorted(name for name in self.taken if name)
        top = "" if "" in self.taken or not tops else tops[0]
        if top:
            if len(tops) > 1:
                raise unsafe(f"it holds several adapters ({_shown(', '.join(tops), 120)})", reason="several_adapters")
            beside = sorted({parts[0] for parts in self.seen} - {top})
            if beside:
                raise unsafe(f"it also holds {beside[0][:80]!r} beside {_shown(top)}", reason="unexpected_file")
        depth = 1 if top else 0
        names = {parts[depth] for parts in self.seen if len(parts) > depth and (not top or parts[0] == top)}
        folder.check_names(PurePosixPath(self.label, _shown(top)), names)
        return Unpacked(self.into / ("below" if top else "top"), self.taken[top])


def _parts(name: str) -> tuple[str, ...]:
    """The path of an entry, which is compared and never used; AdapterRejected where it leads astray."""
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or "\0" in name or len(name) > 1024:
        raise unsafe(f"it has an entry {name[:80]!r}, which would lie outside the folder")
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _shown(name: str, most: int = 80) -> str:
    """A name from the archive, which may be no text and may move a terminal's cursor, for a sentence."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name[:most])


def _too_large(what: str) -> AdapterRejected:
    return AdapterRejected(f"This archive cannot be served: {what}. {_ONE}", reason="archive_too_large")
