"""Which languages rows are in (py3langid), by a sample: naming one takes about a millisecond.

Must not know files or reports.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter

from adapters.errors import StorageFull
from training.data.row import Row, content_hash
from training.extras import need

SAMPLE = 500
CHARACTERS = 600  # of each row
FEW_LETTERS = 24
# Language → those that short texts in it are taken for: written with the same characters, told apart by few words.
KIN = {"zh": ("wuu", "yue"), "no": ("nn",), "ar": ("ary", "arz")}
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


class Languages:
    """A sample of the rows that does not depend on their order, and the languages of it."""

    def __init__(self, most: int = SAMPLE) -> None:
        self._most = most
        self._kept: list[tuple[int, str]] = []  # a heap, its first has the largest hash

    def add(self, row: Row) -> None:
        place = -int.from_bytes(content_hash(row)[8:], "big")
        if len(self._kept) >= self._most and place <= self._kept[0][0]:
            return
        item = (place, words(row))
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, item)
        else:
            heapq.heapreplace(self._kept, item)

    def counts(self) -> dict[str, int]:
        """Language (ISO 639-1) → rows of the sample, the most first; `?` for texts that are too short."""
        named = Counter(language(text) for _, text in self._kept)
        return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))


def words(row: Row) -> str:
    """What of a row tells its language: the beginning of the conversation, without code."""
    text = " ".join(turn.content for turn in row.turns if turn.role != "system")[: CHARACTERS * 4]
    return _CODE.sub(" ", text)[:CHARACTERS]


def known() -> frozenset[str]:
    """The languages that can be told apart (ISO 639-1)."""
    return frozenset(str(name) for name, _ in need("py3langid").rank("")) - {"zxx"}


def language(text: str) -> str:
    """The language of a text; `?` where it has too few letters to tell. StorageFull."""
    letters = [char for char in text if char.isalpha()]
    if len(letters) < FEW_LETTERS and sum(char >= "\u2e80" for char in letters) < FEW_LETTERS // 4:
        return "?"
    try:
        named = str(need("py3langid").classify(text)[0])
    except OSError as exc:  # its model is unpacked once, into a temporary file
        message = f"Languages cannot be told apart: {exc.strerror or exc}. Free some space for temporary files."
        raise StorageFull(message) from None
    return "?" if named == "zxx" else named  # no language at all, such as code or figures
