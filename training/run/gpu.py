"""What nvidia-smi says: which GPUs there are, how full and how busy. None of it where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

QUERY = "index,uuid,memory.used,memory.total,utilization.gpu"
TIMEOUT_S = 10.0
CPU = ""  # the device of a run without a GPU: an empty CUDA_VISIBLE_DEVICES


@dataclass(frozen=True, slots=True)
class Gpu:
    """index: what CUDA_VISIBLE_DEVICES calls it; busy: percent of the last second, None where it does not say."""

    index: str
    uuid: str
    used_gb: float
    total_gb: float
    busy: float | None

    @property
    def free_gb(self) -> float:
        return self.total_gb - self.used_gb


def look() -> tuple[Gpu, ...]:
    """Every GPU of this machine; blocking, up to a few seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    argv = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse(said)


def parse(said: str) -> tuple[Gpu, ...]:
    """nvidia-smi's table; sizes in it are MiB."""
    found = []
    for line in said.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 5:
            continue
        used, total, busy = (_number(cell) for cell in cells[2:])
        if total:  # `[N/A]` on machines that share memory with the processor
            gb = 1024**2 / 1e9
            found.append(Gpu(cells[0], cells[1], (used or 0.0) * gb, total * gb, busy))
    return tuple(found)


def devices(gpus: tuple[Gpu, ...], environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """One CUDA_VISIBLE_DEVICES for each run that may go on at once: one a GPU, else one on the processor."""
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return tuple(gpu.index for gpu in gpus) or (CPU,)
    names = [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    return tuple(names) if names and gpus else (CPU,)


def of(device: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The GPU that a run has; of several the fullest."""
    names = tuple(name for name in device.split(",") if name)
    theirs = [gpu for gpu in gpus if gpu.index in names or (names and gpu.uuid.startswith(names))]
    return min(theirs, key=lambda gpu: gpu.free_gb, default=None)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
