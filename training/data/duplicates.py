"""Rows that are there twice, nearly twice, or in the validation data as well.

Exact: 24 bytes a row. Near: character shingles, MinHash and LSH (datasketch), for as many rows as memory is granted to.
Must not know files or reports.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterator
from typing import Any

from training.data.row import Row, content_hash, question_hash
from training.extras import need

PERMUTATIONS = 64
BANDS = (10, 6)  # bands and rows of each: finds 99 of 100 pairs that are 85 % alike
MOST_CHARACTERS = 2_000  # of a row, for its shingles
FEWEST_SHINGLES = 8  # what is shorter is like everything
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_WIDE = 0x2E80  # from here on: Chinese, Japanese, Korean


class Exact:
    """Which rows say the same (duplicate), and which ask the same and answer otherwise (contradiction).

    Known at the end, for all rows together; at_once: as they come, for about 200 bytes a row.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._numbers, self._contents, self._questions = array("Q"), array("Q"), array("Q")
        self._firsts: tuple[dict[int, int], dict[int, int]] | None = ({}, {}) if at_once else None

    def add(self, row: Row) -> tuple[str, int] | None:
        """Remember it; at_once: how it repeats which earlier row."""
        content = int.from_bytes(content_hash(row)[:8], "big")
        question = int.from_bytes(question_hash(row), "big")
        if self._firsts is None:
            self._numbers.append(row.number)
            self._contents.append(content)
            self._questions.append(question)
            return None
        contents, questions = self._firsts
        first, asked = contents.setdefault(content, row.number), questions.setdefault(question, row.number)
        if first != row.number:
            return "duplicate", first
        return ("contradiction", asked) if asked != row.number else None

    def repeats(self) -> Iterator[tuple[str, int, int]]:
        """(kind, row, the first row that it repeats), by kind and row; nothing where it was told at once."""
        again = set()
        for row, first in self._repeats(self._contents):
            again.add(row)
            yield "duplicate", row, first
        for row, first in self._repeats(self._questions):
            if row not in again:
                yield "contradiction", row, first

    def _repeats(self, hashes: array[int]) -> Iterator[tuple[int, int]]:
        if not hashes:
            return
        numpy = need("numpy")
        values = numpy.frombuffer(hashes, dtype=numpy.uint64)
        order = numpy.argsort(values, kind="stable")
        ordered = values[order]
        starts = numpy.flatnonzero(numpy.concatenate(([True], ordered[1:] != ordered[:-1])))
        firsts = numpy.repeat(order[starts], numpy.diff(numpy.append(starts, len(order))))
        again = numpy.flatnonzero(order != firsts)
        again = again[numpy.argsort(order[again], kind="stable")]
        for place in again:
            yield self._numbers[int(order[place])], self._numbers[int(firsts[place])]


class Near:
    """Rows that are alike. `most`: how many are kept to compare with; a kept row costs about 4 kB."""

    def __init__(self, threshold: float = 0.85, most: int = 50_000) -> None:
        sketch = need("datasketch")
        self._threshold, self.most, self.kept = threshold, most, 0
        self._first = sketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        self._lsh = sketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, params=BANDS)
        self._new = sketch.MinHash
        self._hashes: dict[int, tuple[Any, bytes]] = {}

    def sign(self, row: Row) -> Any:
        """The row's MinHash; None for one that is too short to be like another."""
        hashes = shingles(_text(row))
        if len(set(hashes[: 4 * FEWEST_SHINGLES])) < FEWEST_SHINGLES:
            return None
        made = self._new(
            num_perm=PERMUTATIONS,
            seed=1,
            hashfunc=int,
            permutations=self._first.permutations,
            scheme=self._first.scheme,
        )
        made.update_batch(hashes)
        return made

    def add(self, row: Row, signed: Any) -> None:
        """Keep it to compare others with, while there is room."""
        if signed is None or self.kept >= self.most:
            return
        self._lsh.insert(row.number, signed, check_duplication=False)
        self._hashes[row.number] = (signed.hashvalues, question_hash(row))
        self.kept += 1

    def like(self, row: Row, signed: Any, *, other_question: bool = True) -> int | None:
        """The first kept row that is like this one; other_question: None where one of them asks the very same."""
        if signed is None:
            return None
        question = question_hash(row)
        near = [number for number in sorted(self._lsh.query(signed)) if self._alike(number, signed)]
        if other_question and any(self._hashes[number][1] == question for number in near):
            return None  # it repeats that row, or contradicts it
        return near[0] if near else None

    def _alike(self, number: int, signed: Any) -> bool:
        return float((self._hashes[number][0] == signed.hashvalues).mean()) >= self._threshold


def _text(row: Row) -> str:
    return "\n".join(turn.content + (turn.calls or "") for turn in row.turns if turn.role != "system")


def shingles(text: str) -> list[int]:
    """32-bit hashes of all runs of characters: 5 long, 2 where the text is mostly Chinese, Japanese or Korean."""
    numpy = need("numpy")
    plain = _BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text[:MOST_CHARACTERS]).casefold()).strip()
    codes = numpy.frombuffer(plain.encode("utf-32-le", "replace"), dtype=numpy.uint32).astype(numpy.uint64)
    width = 2 if (codes >= _WIDE).sum() * 3 > len(codes) else 5
    count = len(codes) - width + 1
    if count < 1:
        return []
    hashes = numpy.zeros(count, dtype=numpy.uint64)
    for place in range(width):
        hashes = hashes * numpy.uint64(0x100000001B3) ^ codes[place : place + count]
    hashes = (hashes ^ (hashes >> numpy.uint64(29))) * numpy.uint64(0xBF58476D1CE4E5B9) >> numpy.uint64(32)
    return list(hashes.tolist())
