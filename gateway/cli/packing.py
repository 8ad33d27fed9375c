"""A local adapter as a form for the admin API, made while it is sent: nothing is packed to disk or kept in memory.

A folder is judged as the gateway would judge it, and only its two files leave this machine.
"""

from __future__ import annotations

import os
import secrets
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters import folder
from gateway.cli.client import Refused

PIECE = 256 * 1024
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Content:
    """A body that is sent as it is made. length: bytes of all pieces together."""

    kind: str
    length: int
    pieces: Iterator[bytes]


@contextmanager
def form(path: Path, fields: Mapping[str, str], sent: Callable[[int], object]) -> Iterator[Content]:
    """`path` (a folder or an archive here) and `fields` as multipart/form-data. `sent` hears of each piece.

    Raises Refused, and AdapterRejected for a folder that the gateway would refuse for what it holds.
    """
    boundary = secrets.token_hex(16)
    with _file(path) as (name, length, pieces):
        head = b"".join(_field(boundary, *pair) for pair in fields.items()) + _file_head(boundary, name)
        tail = f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        yield Content(kind, len(head) + length + len(tail), _counted(_joined(head, pieces, tail), sent))


@contextmanager
def _file(path: Path) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    try:
        if path.is_file():
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                yield path.name, size, _exactly(file, size, path)
        else:
            with folder.opened(path) as found:
                if found.refused is not None:
                    raise found.refused
                files = [(folder.CONFIG, len(found.config)), (folder.WEIGHTS, found.weights_bytes)]
                length = sum(_BLOCK + size + _padding(size) for _, size in files) + 2 * _BLOCK
                yield f"{path.name}.tar", length, _tar(found, path)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None


def _tar(found: folder.Folder, path: Path) -> Iterator[bytes]:
    yield _header(folder.CONFIG, len(found.config)) + found.config + bytes(_padding(len(found.config)))
    yield _header(folder.WEIGHTS, found.weights_bytes)
    yield from _exactly(found.weights, found.weights_bytes, path)
    yield bytes(_padding(found.weights_bytes) + 2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)  # which has room for more than 8 GiB


def _exactly(file: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    while size:
        piece = file.read(min(PIECE, size))
        if not piece:
            raise Refused(f"{path} became shorter while it was sent. Try again when nothing writes to it.")
        size -= len(piece)
        yield piece


def _padding(size: int) -> int:
    return -size % _BLOCK


def _field(boundary: str, name: str, value: str) -> bytes:
    text = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
    return text.encode("utf-8", "surrogateescape")


def _file_head(boundary: str, name: str) -> bytes:
    safe = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in name)
    text = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{safe}"\r\n'
    return f"{text}Content-Type: application/octet-stream\r\n\r\n".encode()


def _joined(head: bytes, pieces: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    yield head
    yield from pieces
    yield tail


def _counted(pieces: Iterator[bytes], sent: Callable[[int], object]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        sent(len(piece))
