"""The pin files of configs/environments: which requirements they hold, and the name of what they make."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from gateway.local.places import GB

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "environments"


@dataclass(frozen=True, slots=True)
class Kind:
    """One managed environment: its pins, the disk it takes (bytes, with downloads), and what must import in it.

    first: the package installed before all others, where it comes from an index of its own.
    index: that package's own index, tried when the configured ones do not have it.
    variable: names a user's own interpreter instead.
    """

    name: str
    title: str
    pins: Path
    need_bytes: int
    imports: tuple[str, ...]
    variable: str
    first: str | None = None
    index: str | None = None

    def requirements(self) -> list[str]:
        """The pins' lines without comments. OSError when the file is not there."""
        text = self.pins.read_text(encoding="utf-8")
        return [line for raw in text.splitlines() if (line := re.sub(r"(^|\s)#.*", "", raw).strip())]

    def digest(self, python: str, machine: str) -> str:
        """12 hex over the pins, the Python version (`3.11`) and the processor."""
        content = "\n".join((*self.requirements(), python, machine))
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def kinds(folder: Path = FOLDER) -> dict[str, Kind]:
    """Every kind that is made here, by name.

    Sizes as measured (CPU engine 3.4 GB and 0.9 downloaded, training 5.9 GB), with room.
    """
    engine = "LORAGATE_ENGINE_PYTHON"
    found = (
        Kind(
            "engine-cpu",
            "vLLM for CPUs",
            folder / "engine-cpu.txt",
            5 * GB,
            ("vllm", "torch", "huggingface_hub"),
            engine,
            first="torch",
            index="https://download.pytorch.org/whl/cpu",
        ),
        Kind(
            "engine-cuda",
            "vLLM for NVIDIA GPUs",
            folder / "engine-cuda.txt",
            12 * GB,
            ("vllm", "torch", "huggingface_hub"),
            engine,
        ),
        Kind(
            "training",
            "LLaMA-Factory",
            folder / "training.txt",
            9 * GB,
            ("llamafactory", "torch", "peft"),
            "LORAGATE_TRAINING_PYTHON",
        ),
    )
    return {kind.name: kind for kind in found}
