"""Checkpoints on disk: which are whole, which one a run goes on from, and what a broken one is moved out of the way of.

LLaMA-Factory takes the highest number without looking: a checkpoint that a crash cut short would end the run.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import ServiceError
from adapters.safetensors import read_header

_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
_CRC_UP_TO = 4 * 1024**3  # bytes; larger archives are only looked at from outside
INCOMPLETE = "checkpoint-is-incomplete.txt"
STATE = "trainer_state.json"
# What the end of a run writes beside the checkpoints; without any checkpoint the trainer refuses to start over it.
FINAL = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "all_results.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "train_results.json",
    STATE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A whole checkpoint. figures: what the trainer had logged at or before it, the newest of each kind."""

    step: int
    folder: Path
    figures: Mapping[str, float]


def present(output: Path) -> dict[int, Path]:
    """step → folder, whole or not."""
    found: dict[int, Path] = {}
    if output.is_dir():
        for folder in output.iterdir():
            name = _NAME.fullmatch(folder.name)
            if name and folder.is_dir():
                found[int(name[1])] = folder
    return dict(sorted(found.items()))


def look(folder: Path) -> Found | str:
    """The checkpoint, or what is wrong with it."""
    name = _NAME.fullmatch(folder.name)
    if name is None:
        return "its name has no step"
    if (folder / INCOMPLETE).exists():
        return "it was cut short while it was written"
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        step = int(state["global_step"])
        history = list(state.get("log_history") or ())
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {STATE} is missing or broken"
    if step != int(name[1]):
        return f"its {STATE} speaks of step {step}"
    wrong = _weights(folder) or _optimizer(folder) or _archive(folder / "scheduler.pt", needed=True)
    for state_of_chance in sorted(folder.glob("rng_state*.pth")):
        wrong = wrong or _archive(state_of_chance, needed=True)
    return wrong or Found(step, folder, figures(history))


def newest_whole(output: Path, aside: Path) -> tuple[Found | None, tuple[str, ...]]:
    """The newest whole checkpoint; broken newer ones are moved to the folder `aside`, with a sentence for each."""
    said: list[str] = []
    for step, folder in reversed(present(output).items()):
        found = look(folder)
        if isinstance(found, Found):
            return found, tuple(said)
        aside.mkdir(parents=True, exist_ok=True)
        target = next(path for path in _names(aside, folder.name) if not path.exists())
        os.replace(folder, target)
        said.append(f"The checkpoint of step {step} cannot be used ({found}); it was moved to {target.parent.name}/.")
    return None, tuple(said)


def clear_final(output: Path) -> None:
    """Take away what an earlier end left: it is not this run's result."""
    for name in FINAL:
        (output / name).unlink(missing_ok=True)


def figures(history: list[Any]) -> dict[str, float]:
    """The newest of each figure in a `log_history`."""
    newest: dict[str, float] = {}
    for entry in history:
        if isinstance(entry, dict):
            for key, value in entry.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    newest[key] = float(value)
    return newest


def weights_wrong(file: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and its length."""
    try:
        with file.open("rb") as opened:
            read_header(opened, file.stat().st_size)
    except OSError:
        return f"{file.name} is missing"
    except ServiceError:
        return f"{file.name} is broken"
    return None


def _weights(folder: Path) -> str | None:
    for name in _WEIGHTS:
        if (folder / name).exists():
            return weights_wrong(folder / name)
    parts = sorted(folder.glob("model-*-of-*.safetensors"))
    if parts:
        return next((wrong for part in parts if (wrong := weights_wrong(part))), None)
    return "it has no weights"


def _optimizer(folder: Path) -> str | None:
    latest = folder / "latest"  # DeepSpeed keeps its own folder, and names it here
    if latest.exists():
        try:
            inner = folder / latest.read_text(encoding="utf-8").strip()
            return None if inner.is_dir() and any(inner.iterdir()) else "its optimizer is missing"
        except (OSError, ValueError):
            return "its optimizer is missing"
    if any(folder.glob("optimizer_*/*")):  # FSDP, sharded
        return None
    single = folder / "optimizer.bin"  # FSDP, in one file
    return _archive(single if single.exists() else folder / "optimizer.pt", needed=True)


def _archive(file: Path, *, needed: bool) -> str | None:
    """What torch.save wrote is a zip archive: cut short, it has no end; with a hole, a sum is wrong."""
    if not file.exists():
        return f"{file.name} is missing" if needed else None
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip() if file.stat().st_size <= _CRC_UP_TO else None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError):
        return f"{file.name} is broken"
    return f"{file.name} is broken" if bad is not None else None


def _names(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    number = 2
    while True:
        yield folder / f"{name}.{number}"
        number += 1
