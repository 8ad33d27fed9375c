"""How long things took last time on this machine, so that the next wait can be estimated. Loss does no harm."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by name in one small JSON file."""

    path: Path

    def last(self, name: str) -> float | None:
        """Seconds that `name` took last time; None when it never ran here."""
        value = self._read().get(name)
        return float(value) if isinstance(value, int | float) else None

    def keep(self, name: str, seconds: float) -> None:
        """Remember; a disk that does not take it is not worth a failure."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({**self._read(), name: round(seconds, 1)}), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, object]:
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}
