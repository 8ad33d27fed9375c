"""What this machine is: processor, memory, GPU and driver, the C library, libnuma. Looks only; decides nothing."""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU as the driver names it; memory in MiB."""

    name: str
    memory_mib: int
    driver: str

    @property
    def driver_major(self) -> int:
        head = self.driver.split(".")[0]
        return int(head) if head.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Hardware:
    """One look at the machine. Memory in bytes; `flags` are the processor's vector sets that the engine can use."""

    system: str
    machine: str
    glibc: tuple[int, int] | None
    cpus: int
    memory: int
    gpus: tuple[Gpu, ...]
    flags: tuple[str, ...]
    numa: bool


def look(environ: Mapping[str, str]) -> Hardware:
    """Ask the system. GPUs that CUDA_VISIBLE_DEVICES hides altogether ("" or "-1") are not counted."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return Hardware(
        system=platform.system(),
        machine={"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()),
        glibc=_glibc(),
        cpus=_cpus(),
        memory=psutil.virtual_memory().total,
        gpus=() if hidden else _gpus(environ),
        flags=_flags(),
        numa=ctypes.util.find_library("numa") is not None,
    )


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The lines of `nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[2][:1].isdigit():
            found.append(Gpu(parts[0], int(parts[1]) if parts[1].isdigit() else 0, parts[2]))
    return tuple(found)


def _gpus(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=15, check=False, env=dict(environ))
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(answer.stdout) if answer.returncode == 0 else ()


def _glibc() -> tuple[int, int] | None:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # not glibc: musl, macOS, Windows
        return None
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _flags() -> tuple[str, ...]:
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return ()
    return tuple(flag for flag in wanted if flag in words)
