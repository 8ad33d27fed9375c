"""An adapter merged into its base, and refused where the result is not what the adapter on the base is.

The child measures; the rules are here: the saved weights must differ from the base's wherever the adapter has a module,
and the saved model's logits must be those of the adapter on the base, within a stated tolerance.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from adapters import intake
from adapters.errors import InvalidRequest, ServiceError, StorageFull
from adapters.served import described
from training.interpreter import Interpreter

CHILD = Path(__file__).resolve().with_name("merge_child.py")
ANY_RANK = 512
PROMPTS = (
    "What is your return policy?",
    "请问我的订单什么时候到?",
    "Write a function that adds two numbers.\n\ndef add(a, b):",
    "In 2024 revenue grew by 12 % to 340 million, because",
)
# Of the largest logit. The comparison is computed in 32 bits; what is left is the rounding of the merged weights to
# the type that the base is stored in (8 bits of mantissa in bfloat16, 11 in float16, 24 in float32).
TOLERANCES = {"bfloat16": 0.05, "float16": 0.01, "float32": 1e-4}
IN_16_BITS = 0.1  # where the machine has no memory for 32, and the comparison itself rounds
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.bin", "*.pth", "*.gguf")


class NotMerged(ServiceError):
    """The merged model is not what the adapter on its base is; nothing was kept."""

    code = "not_merged"


@dataclass(frozen=True, slots=True)
class Merged:
    """What was measured. tolerance, off: as shares of the largest logit; precision: of the comparison."""

    folder: str
    stored: str
    precision: str
    changed: int
    modules: int
    prompts: int
    positions: int
    off: float
    tolerance: float
    same_choice: float
    adapter_effect: float

    @property
    def sentence(self) -> str:
        return (
            f"{self.changed} weights differ from the base's, all {self.modules} that the adapter changes among them. "
            f"On {self.prompts} fixed prompts ({self.positions} positions) the saved model's logits are within "
            f"{self.off:.2%} of those of the adapter on its base (allowed: {self.tolerance:.2%} of the largest logit; "
            f"the adapter moves them by {self.adapter_effect:.0%}), and {self.same_choice:.1%} of the most likely "
            "tokens are the same."
        )

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def check_base(base: Path, adapter: Path) -> None:
    """InvalidRequest where `base` is no model that can be merged into; AdapterRejected where the two do not fit."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InvalidRequest(f"{base} holds no base model: there is no config.json that can be read.") from None
    if isinstance(config, dict) and config.get("quantization_config"):
        raise InvalidRequest(
            f"The base in {base} is quantised, and nothing can be merged into quantised weights. Name the original "
            "16-bit model; quantise the result with `loragate export gptq` then."
        )
    if not any(base.glob("*.safetensors")):
        raise InvalidRequest(f"{base} has no *.safetensors. Download the base in that format.")
    known = described(base.name, str(base.absolute()))
    intake.check(adapter.absolute(), known if known.shape is not None else None, ANY_RANK)


def merge(
    python: Interpreter,
    base: Path,
    adapter: Path,
    target: Path,
    *,
    papers: Callable[[Merged], Mapping[str, str]] = lambda merged: {},
    show: Callable[[int, int], None] = lambda done, in_all: None,
) -> Merged:
    """Write the merged model into `target`, which must not be there yet. Blocking, minutes for large models.

    papers: texts that are put beside it, by file name. NotMerged, ChildFailed, InvalidRequest, StorageFull; then
    nothing is left of it.
    """
    check_base(base, adapter)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    need_room(target.parent, size)
    precision = _precision(size)
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        made, work = fresh / "model", fresh / "work"
        measured = _measured(python, base, adapter, made, work, precision, show)
        verdict = judge(measured, str(target), precision)
        furnish(base, made)
        for name, text in papers(verdict).items():
            (made / name).write_text(text, encoding="utf-8")
        made.chmod(0o755)
        os.replace(made, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return verdict


def judge(measured: Mapping[str, Any], folder: str, precision: str) -> Merged:
    """NotMerged where the figures are not those of a merge."""
    changed = set(measured["changed"])
    targets = [name for name in measured["targets"] if f"{name}.weight" not in changed]
    if targets:
        some = ", ".join(targets[:3])
        raise NotMerged(
            f"{len(targets)} of {len(measured['targets'])} modules of the adapter left the base's weights as they "
            f"were ({some}): the adapter was not trained there, or its change is smaller than the base's "
            f"{measured['stored']} can hold. Serve it as an adapter instead; nothing was kept."
        )
    largest = measured["largest_logit"] or 1.0
    off, effect = measured["off_adapter"] / largest, measured["adapter_off_base"] / largest
    tolerance = TOLERANCES.get(measured["stored"], 0.01) if precision == "float32" else IN_16_BITS
    if not off <= tolerance:  # NaN is refused, too
        raise NotMerged(
            f"The merged model does not answer as the adapter on its base does: logits are {off:.2%} of the largest "
            f"one apart, and {tolerance:.2%} are allowed. Nothing was kept; serve it as an adapter instead."
        )
    if measured["off_adapter"] >= measured["off_base"]:
        raise NotMerged(
            "The merged model is nearer to the base than to the adapter on it: rounding took the adapter's effect "
            "away. Nothing was kept; serve it as an adapter instead."
        )
    return Merged(
        folder=folder,
        stored=measured["stored"],
        precision=precision,
        changed=len(changed),
        modules=len(measured["targets"]),
        prompts=measured["prompts"],
        positions=measured["positions"],
        off=off,
        tolerance=tolerance,
        same_choice=measured["same_choice"],
        adapter_effect=effect,
    )


def furnish(base: Path, made: Path) -> None:
    """Everything of the base but its weights: config, tokenizer and chat template stay exactly as they are served."""
    for file in base.iterdir():
        if file.is_file() and not any(file.match(pattern) for pattern in (*_WEIGHTS, "README.md", ".*")):
            shutil.copyfile(file, made / file.name)
    for file in made.iterdir():
        file.chmod(0o644)  # for whichever user runs the engine


def need_room(folder: Path, size: int) -> None:
    """StorageFull where the disk has no room for `size` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size * 1.05:
        raise StorageFull(
            f"The model takes {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free. Free some space, or "
            "name a folder on another disk."
        )


def _measured(
    python: Interpreter,
    base: Path,
    adapter: Path,
    made: Path,
    work: Path,
    precision: str,
    show: Callable[[int, int], None],
) -> dict[str, Any]:
    work.mkdir()
    request, answer = work / "request.json", work / "answer.json"
    asked = {
        "base": str(base.absolute()),
        "adapter": str(adapter.absolute()),
        "out": str(made),
        "prompts": PROMPTS,
        "precision": precision,
    }
    request.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
    python.run(python.script(CHILD, str(request), str(answer)), work, show)
    measured: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return measured


def _precision(size: int) -> str:
    """32 bits where the machine has the memory for a model of `size` bytes in 16."""
    return "float32" if psutil.virtual_memory().available > 2.6 * size else "bfloat16"
