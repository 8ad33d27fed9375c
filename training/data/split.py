"""Which rows are held out: by a hash of what they ask, so that a row stays on its side when the file grows.

Rows that ask the same, and rows that were made from one, are on one side: nothing leaks. Must not know files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from training.data.row import Row, key


def is_held_out(row: Row, share: float, seed: int) -> bool:
    """Whether the row belongs to the validation data, `share` of all questions."""
    digest = hashlib.blake2b(f"{seed}:{key(row)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def is_side(share: float, seed: int, held_out: bool, row: Row) -> bool:
    """Whether the row is on the side that is held out, or on the other."""
    return is_held_out(row, share, seed) == held_out


def split(rows: Iterable[Row], share: float, seed: int) -> Iterator[tuple[bool, Row]]:
    """(held out, row) of each row, in order."""
    for row in rows:
        yield is_held_out(row, share, seed), row
