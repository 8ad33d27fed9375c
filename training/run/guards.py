"""Room before a run is started: disk for its checkpoints, memory for its model. The figures come from the plan."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from training.run.diagnosis import smaller
from training.run.gpu import CPU, Gpu, of
from training.types import Problem

LEAST_DISK_GB = 0.2  # where the plan says nothing: log, curve and one small checkpoint
STOP = (
    "Stop what else runs there, or choose smaller settings. For an engine that serves, `pause_engine: true` in the "
    "recipe does that while the run trains."
)
MARGIN = 1.05
MEMORY = frozenset({"gpu_memory", "memory"})  # codes of what an engine that stops may mend


def refusal(folder: Path, settled: Mapping[str, Any], device: str, gpus: tuple[Gpu, ...]) -> Problem | None:
    """Why the run must not start now, with the figures; None where there is room."""
    return _disk(folder, _figure(settled, "disk_gb")) or _memory(settled, device, gpus)


def _disk(folder: Path, needed: float | None) -> Problem | None:
    need = max((needed or 0.0) - _taken_gb(folder), LEAST_DISK_GB)  # of what it still has to write
    free = shutil.disk_usage(folder).free / 1e9
    if free >= need:
        return None
    return Problem(
        "disk_full",
        f"This run needs {need:.1f} GB of disk for its checkpoints, and {free:.1f} GB are free in the data directory. "
        "Free some space, or save less often, then resume or start the job again.",
    )


def _taken_gb(folder: Path) -> float:
    """What earlier starts of the run have written."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def _memory(settled: Mapping[str, Any], device: str, gpus: tuple[Gpu, ...]) -> Problem | None:
    need = _figure(settled, "memory_gb")
    if need is None:
        return None
    gpu = of(device, gpus)
    if gpu is not None and need * MARGIN > gpu.free_gb:
        return Problem(
            "gpu_memory",
            f"This run needs about {need:.1f} GB of GPU memory, and GPU {device} has {gpu.free_gb:.1f} of "
            f"{gpu.total_gb:.1f} GB free. {STOP}",
            try_this=smaller(settled),
        )
    if device == CPU:
        free = _free_memory_gb()
        if need > free:
            return Problem(
                "memory",
                f"This run needs about {need:.1f} GB of memory, and {free:.1f} GB are free on this machine. {STOP}",
                try_this=smaller(settled),
            )
    return None


def _free_memory_gb() -> float:
    """Of this machine, or of what a container may take."""
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, taken = (float((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        free = min(free, limit - taken + float(stat.get("inactive_file", 0)))  # cached files make way
    except (OSError, ValueError):  # no such limit (`max`), or not that kind of machine
        pass
    return free / 1e9


def _figure(settled: Mapping[str, Any], name: str) -> float | None:
    value = settled.get(name)
    return float(value) if isinstance(value, int | float) else None
