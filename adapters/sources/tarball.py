"""A tar, gzipped or not, read once from front to back: regular files and folders, and nothing else.

tarfile does the reading; it trusts sizes in headers, so what it may read between two entries is bounded here.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Protocol, cast

from adapters.sources.member import PIECE, Caps, Member, damaged, linked, unsafe

_BLOCK = 512
_LONG = 64 * 1024  # of one name or one set of extended attributes
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_LONG_TYPES = (*_EXTENDED, tarfile.GNUTYPE_LONGLINK)
_GZIP = 31  # zlib's word for "with gzip's header, and its checksum at the end"


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def members(file: BinaryIO, caps: Caps, *, gzipped: bool) -> Iterator[Member]:
    """Every entry in order; AdapterRejected, and whatever tarfile and zlib raise on damaged bytes."""
    source: _Readable = _Gunzip(file) if gzipped else file
    stream = _Metered(source, file, caps)
    seen = _Seen()
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_header_class(seen, caps)) as tar:
        while (entry := tar.next()) is not None:
            cast(Any, tar).members.clear()  # it would keep them all
            member = _member(tar, entry, stream)
            yield member
            for _ in member.pieces:  # what nobody wanted is read all the same: this is a stream
                pass
            stream.left = caps.header
    if not seen.ended:
        raise damaged("it ends in the middle")
    stream.left = None
    while stream.read(PIECE):  # to the end: gzip's checksum comes last
        pass


def _member(tar: tarfile.TarFile, entry: tarfile.TarInfo, stream: _Metered) -> Member:
    if entry.issparse() or not (entry.isreg() or entry.isdir()):
        raise linked(entry.name)
    if entry.size < 0 or (entry.isdir() and entry.size):
        raise damaged(f"its entry {entry.name[:80]!r} has an impossible size")
    return Member(entry.name, entry.isdir(), entry.size, _pieces(tar, entry, stream))


def _pieces(tar: tarfile.TarFile, entry: tarfile.TarInfo, stream: _Metered) -> Iterator[bytes]:
    data = tar.extractfile(entry)
    if data is None:
        return
    stream.left = None
    while piece := data.read(PIECE):
        yield piece


@dataclass(slots=True)
class _Seen:
    headers: int = 0
    extended: int = 0  # bytes of names and attributes
    common: int = 0  # bytes of attributes for all further entries, which tarfile keeps and copies for each
    ended: bool = False


def _header_class(seen: _Seen, caps: Caps) -> type[tarfile.TarInfo]:
    """tarfile ends quietly at a header that it cannot read, and allocates what a long name claims: not here."""

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            seen.headers += 1
            if seen.headers > 4 * caps.entries:
                raise unsafe(f"it has more than {caps.entries} entries", reason="archive_too_large")
            if buf == bytes(_BLOCK):
                seen.ended = True
            elif len(buf) < _BLOCK:
                raise damaged("it ends in the middle")
            try:
                found = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                if seen.ended:
                    raise
                raise damaged("it is neither a tar, a tar.gz nor a zip, or a part of it is broken") from None
            if found.size < 0 or (found.type in _LONG_TYPES and found.size > _LONG):
                raise damaged("a header in it has an impossible size")
            if found.type in _LONG_TYPES:
                seen.extended += found.size
                seen.common += found.size if found.type == tarfile.XGLTYPE else 0
                if seen.extended > 4 * caps.header or seen.common > _LONG:
                    raise damaged("it has more attributes than files")
            return found

    return Header


class _Metered:
    """What tarfile reads from. left: how many bytes it may still take; None while an entry's data is read."""

    def __init__(self, source: _Readable, packed: BinaryIO, caps: Caps) -> None:
        self._source = source
        self._packed = packed
        self._caps = caps
        self._total = 0
        self.left: int | None = caps.header

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._total += len(data)
        caps = self._caps
        if self._total > caps.total + caps.header * 2:
            raise unsafe(f"it unpacks to more than {caps.total} bytes", reason="archive_too_large")
        if self._total > caps.free and self._total > caps.ratio * self._packed.tell():
            raise unsafe(f"it unpacks to more than {caps.ratio} times its size", reason="archive_too_large")
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise damaged("there is too much between two of its entries")
        return data


class _Gunzip:
    """gzip, one member or several, in bounded memory. (gzip.GzipFile reads a name in the header without end.)"""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(_GZIP)
        self._rest = b""

    def read(self, size: int) -> bytes:
        while True:
            if self._inflate.eof:
                self._rest = (self._inflate.unused_data or self._file.read(PIECE)).lstrip(b"\0")
                if not self._rest:
                    return b""
                self._inflate = zlib.decompressobj(_GZIP)
            packed = self._rest or self._file.read(64 * 1024)
            if not packed:
                raise EOFError
            data = self._inflate.decompress(packed, size)
            self._rest = self._inflate.unconsumed_tail
            if data:
                return data
