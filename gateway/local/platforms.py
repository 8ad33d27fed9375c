"""Which environment can exist on which machine and Python, and what works instead where it cannot."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.local.errors import PlatformUnsupported
from gateway.local.hardware import Hardware

OLDEST, NEWEST = (3, 11), (3, 13)  # numba 0.65 and torch 2.13 have wheels for these
GLIBC = (2, 28)  # manylinux_2_28: Debian 10, RHEL 8, Ubuntu 20.04 and later
CUDA_DRIVER = 580  # the first branch that runs CUDA 13, which the engine's torch is built for
INSTEAD = "`loragate up --engine URL` works here with an engine that runs elsewhere"


def engine_kind(hardware: Hardware) -> str:
    """`engine-cuda` where an NVIDIA GPU can be used, else `engine-cpu`; PlatformUnsupported for an old driver."""
    if not hardware.gpus:
        return "engine-cpu"
    gpu = hardware.gpus[0]
    if gpu.driver_major < CUDA_DRIVER:
        raise PlatformUnsupported(
            f"The driver of {gpu.name} is {gpu.driver} and the engine needs {CUDA_DRIVER} or later (CUDA 13). "
            "Update it, name an environment of your own with LORAGATE_ENGINE_PYTHON, or use the processor with "
            "CUDA_VISIBLE_DEVICES=-1."
        )
    return "engine-cuda"


def need_platform(hardware: Hardware) -> None:
    """PlatformUnsupported, with what works there, where no wheels of the engine or the trainer exist."""
    if hardware.system == "Darwin":
        raise PlatformUnsupported(
            f"There are no wheels of the engine for macOS. {INSTEAD}, and so does a Linux container on this Mac."
        )
    if hardware.system == "Windows":
        raise PlatformUnsupported("There are no wheels of the engine for Windows. Run loragate inside WSL2.")
    if hardware.machine not in ("x86_64", "aarch64"):
        raise PlatformUnsupported(
            f"There are no wheels of the engine for {hardware.machine} processors, only for x86-64 and "
            f"aarch64. {INSTEAD}."
        )
    if hardware.glibc is None:
        raise PlatformUnsupported(
            f"The engine's wheels need glibc, and this system has another C library (Alpine's musl?). {INSTEAD}; "
            "a Debian or Ubuntu container works."
        )
    if hardware.glibc < GLIBC:
        have, need = (".".join(map(str, version)) for version in (hardware.glibc, GLIBC))
        raise PlatformUnsupported(
            f"The engine's wheels need glibc {need} or later and this system has {have}. {INSTEAD}; "
            "a container of a newer system (Debian 12, Ubuntu 24.04) works."
        )


@dataclass(frozen=True, slots=True)
class Interpreter:
    path: Path
    version: str  # "3.11"


def suitable_python(environ: Mapping[str, str], *, running: tuple[int, int] | None = None) -> Interpreter:
    """The running interpreter when it is 3.11 to 3.13, else the newest such on PATH; PlatformUnsupported."""
    running = running or (sys.version_info[0], sys.version_info[1])
    if OLDEST <= running <= NEWEST:
        return Interpreter(Path(sys.executable), f"{running[0]}.{running[1]}")
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}", path=environ.get("PATH"))
        if found:
            return Interpreter(Path(found), f"3.{minor}")
    side = "older" if running < OLDEST else "newer"
    raise PlatformUnsupported(
        f"This Python is {running[0]}.{running[1]}, {side} than what the engine has wheels for. Install Python 3.11, "
        f"3.12 or 3.13 so that python3.12 (say) is on PATH, and start again. {INSTEAD}."
    )
