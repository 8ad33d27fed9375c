"""One entry of an archive as both formats give it, what an archive may cost, and how one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapters.errors import AdapterRejected
from adapters.folder import CONFIG, MAX_ENTRIES, MAX_WEIGHTS_BYTES, WEIGHTS

PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Caps:
    """entries: files and folders. total, file: unpacked bytes. ratio: unpacked to packed, beyond `free` bytes.

    Weights are noise to a compressor (ratio 1.1; zeros in a half of them: 2); 100 is nothing but a bomb.
    """

    entries: int = MAX_ENTRIES
    total: int = 2 * MAX_WEIGHTS_BYTES  # optimizer states and checkpoints lie beside weights, and are passed over
    file: int = MAX_WEIGHTS_BYTES
    ratio: int = 100
    free: int = 64 * 1024 * 1024
    header: int = 1024 * 1024  # what may lie between two entries of a tar, or in one read of a zip's directory


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file or a folder. `pieces` must be used before the next member is asked for, or not at all."""

    name: str
    is_folder: bool
    size: int
    pieces: Iterator[bytes]


def damaged(what: str) -> AdapterRejected:
    """Bytes that are no archive, or not all of one."""
    return AdapterRejected(
        f"This archive cannot be served: {what}. Pack the folder again (tar czf adapter.tar.gz -C FOLDER .).",
        reason="archive_damaged",
    )


def unsafe(
    what: str, reason: str = "archive_unsafe", nearest: str = f"Pack {CONFIG} and {WEIGHTS} only."
) -> AdapterRejected:
    """Entries that no adapter needs. nearest: what to do, a sentence."""
    return AdapterRejected(f"This archive cannot be served: {what}. {nearest}", reason=reason)


def linked(name: str) -> AdapterRejected:
    """An entry that is neither a file nor a folder."""
    nearest = "Pack the files themselves: `tar -h` follows links."
    return unsafe(f"its entry {name[:80]!r} is a link, a device or sparse, not an ordinary file", nearest=nearest)
