"""How alike two texts are in meaning, as an encoder sees it: optional, and computed in the training environment.

The encoder is a folder on this machine; nothing is downloaded. Must not know whose answers they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.interpreter import ChildFailed, Interpreter

CHILD = Path(__file__).resolve().with_name("bertscore_child.py")
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class BertScore:
    """model: the encoder's folder; layer: of its hidden states, None for the last."""

    python: Interpreter
    model: Path
    layer: int | None = None

    async def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """F1 of each (answer, reference), from 0 to 1; ChildFailed where the encoder does not run."""
        if not pairs:
            return []
        request = {"model": str(self.model), "layer": self.layer, "pairs": [list(pair) for pair in pairs]}
        with tempfile.TemporaryDirectory(prefix="loragate-bertscore-") as folder:
            try:
                answer = await self.python.answer(CHILD, request, Path(folder), TIMEOUT_S)
            except ChildFailed as failed:
                raise ChildFailed(f"BERTScore could not be computed with {self.model}: {failed.message}") from None
        found = answer["f1"]
        if len(found) != len(pairs):
            raise ChildFailed(f"The encoder scored {len(found)} of {len(pairs)} pairs.")
        return [float(each) for each in found]
