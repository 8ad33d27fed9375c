"""Whether a run is whole. Exit code 0 is not success: LLaMA-Factory also exits 0 when it was stopped early.

Looks at the output folder only; what was asked of the run is its caller's to know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from training.run.checkpoints import STATE, weights_wrong

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Output:
    """The end of a run as its folder shows it. `wrong`: what speaks against a whole end, None for nothing."""

    step: int | None  # of the last word; None: it never came to its end
    steps: int | None
    wrong: str | None

    @property
    def ended(self) -> bool:
        """The trainer wrote its last word, early or not."""
        return self.step is not None


def judge(output: Path, *, early_stopping: bool = False) -> Output:
    """Every step done (or stopped early by the recipe's own rule), and weights that can be read."""
    try:
        state = json.loads((output / STATE).read_text(encoding="utf-8"))
        step, steps = int(state["global_step"]), int(state["max_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return Output(None, None, "the trainer did not come to its end")
    wrong = _weights_wrong(output)
    if wrong is None and step != steps and not early_stopping:
        wrong = f"training stopped at step {step} of {steps}"
    return Output(step, steps, wrong)


def _weights_wrong(output: Path) -> str | None:
    if (output / ADAPTER).exists():
        return weights_wrong(output / ADAPTER)
    whole = sorted(output.glob("model*.safetensors"))  # full and freeze: a model of its own
    if not whole:
        return f"{ADAPTER} is missing"
    return next((wrong for file in whole if (wrong := weights_wrong(file)) is not None), None)
