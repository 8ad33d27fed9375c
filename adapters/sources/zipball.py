"""A zip: regular files and folders, stored or deflated, and nothing else.

zipfile does the reading; it takes the directory's size at its word, so no read of it may be large. Must not know
what is kept.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from adapters.sources.member import PIECE, Caps, Member, damaged, linked, unsafe

_ENCRYPTED = 0x1 | 0x40
_TAKEN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def members(file: BinaryIO, caps: Caps) -> Iterator[Member]:
    """Every entry as the directory lists them; AdapterRejected, and whatever zipfile raises on damaged bytes."""
    with zipfile.ZipFile(_Sparing(file, max(caps.header, PIECE) * 4)) as found:
        entries = found.infolist()
        if len(entries) > caps.entries:
            raise unsafe(f"it has more than {caps.entries} entries", reason="archive_too_large")
        for entry in entries:
            _check(entry, caps)
            yield Member(entry.filename, entry.is_dir(), entry.file_size, _pieces(found, entry))


def _check(entry: zipfile.ZipInfo, caps: Caps) -> None:
    name = entry.orig_filename[:80]
    if entry.flag_bits & _ENCRYPTED:
        raise unsafe(f"its entry {name!r} is encrypted", "archive_encrypted", "Pack it again without a password.")
    if entry.filename != entry.orig_filename:  # cut at a NUL
        raise unsafe(f"it has an entry {name!r}, which would lie outside the folder")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        raise linked(name)
    if entry.is_dir() and entry.file_size:
        raise damaged(f"its entry {name!r} has an impossible size")
    if entry.compress_type not in _TAKEN:
        what = f"its entry {name!r} is packed in a way other than deflate"
        raise unsafe(what, "archive_unsupported", "Pack it as .tar.gz (tar czf adapter.tar.gz -C FOLDER .).")
    if entry.file_size > caps.free and entry.file_size > caps.ratio * entry.compress_size:
        raise unsafe(f"it unpacks to more than {caps.ratio} times its size", reason="archive_too_large")


def _pieces(found: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    with found.open(entry) as data:
        while piece := data.read(PIECE):
            yield piece


class _Sparing(io.RawIOBase):
    """The file, with no read larger than `most` bytes. Leaves it open."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size if 0 <= size <= self._most else self._most + 1)
        if len(data) > self._most:
            raise damaged("its directory is too large")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
