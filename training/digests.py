"""sha256 of files, and of large ones that seldom change only once: remembered by size and time of change.

Must not know what the files are. Blocking: about 1 s per gigabyte, the first time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Hashed:
    """sha256: 64 hex digits; lines: how many line ends there are."""

    sha256: str
    bytes: int
    lines: int


def hashed(file: Path) -> Hashed:
    """One pass over the file. OSError."""
    digest, size, lines = hashlib.sha256(), 0, 0
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
            size += len(piece)
            lines += piece.count(b"\n")
    return Hashed(digest.hexdigest(), size, lines)


class Digests:
    """kept: the file that remembers, made when it is first needed; None remembers nothing."""

    def __init__(self, kept: Path | None) -> None:
        self._kept = kept
        self._known: dict[str, list[object]] = {}
        if kept is not None:
            with suppress(OSError, ValueError):
                found = json.loads(kept.read_text(encoding="utf-8"))
                self._known = found if isinstance(found, dict) else {}

    def of(self, file: Path) -> str:
        """sha256 of the file's content as it is now. OSError."""
        name, now = str(file.resolve()), file.stat()
        known = self._known.get(name)
        if isinstance(known, list) and known[:2] == [now.st_size, now.st_mtime_ns] and len(known) == 3:
            return str(known[2])
        made = hashed(file).sha256
        after = file.stat()
        if (after.st_size, after.st_mtime_ns) == (now.st_size, now.st_mtime_ns):  # else it was written meanwhile
            self._known[name] = [now.st_size, now.st_mtime_ns, made]
            self._keep()
        return made

    def _keep(self) -> None:
        if self._kept is None:
            return
        with suppress(OSError):  # then it is hashed again next time
            self._kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, fresh = tempfile.mkstemp(dir=self._kept.parent, prefix=f".{self._kept.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as written:
                json.dump(self._known, written)
            os.replace(fresh, self._kept)
