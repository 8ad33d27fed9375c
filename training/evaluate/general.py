"""The general set: short questions and texts that have nothing to do with any adapter, to see what was forgotten.

configs/recipes/general.jsonl is ours; another file may be named. Must not know models.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataRejected
from training.evaluate.example import Example

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "general.jsonl"


@dataclass(frozen=True, slots=True)
class General:
    """source: as it is shown; digest: of the file."""

    source: str
    digest: str
    pieces: tuple[Example | str, ...]


def load(path: Path = SHIPPED) -> General:
    """Lines `{"text": …}` or `{"messages": […]}`, the last one an answer. DataRejected names the line."""
    try:
        raw = path.read_bytes()
        lines = raw.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataRejected(f"The general set {path} cannot be read ({error}). Name a JSONL file in UTF-8.") from None
    pieces = [_piece(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not pieces:
        raise DataRejected(f"The general set {path} is empty. Leave it out to use the one that comes with loragate.")
    return General(path.name, hashlib.sha256(raw).hexdigest(), tuple(pieces))


def _piece(line: str, number: int) -> Example | str:
    try:
        found = json.loads(line)
        if "text" in found:
            return str(found["text"])
        *before, last = found["messages"]
        if last["role"] == "assistant" and before and str(last["content"]).strip():
            return Example(number, tuple(before), str(last["content"]))
    except (ValueError, KeyError, TypeError):
        pass
    raise DataRejected(
        f'Line {number} of the general set is neither {{"text": …}} nor {{"messages": […]}} that ends with an answer.'
    )
