"""What a process tree costs: CPU seconds, memory, and how busy the machine is. Knows no peer and no HTTP."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (10^6 bytes) of a process tree; shared pages count once per process in rss, in parts in pss."""

    rss_mb: float
    pss_mb: float


def tree(pid: int) -> list[int]:
    """`pid` and all that descends from it; empty when it is gone."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """CPU time spent so far by the tree of `pid`, user and system, all threads, in seconds.

    On Linux from each process's CPU clock (clock_getcpuclockid(3)): nanoseconds, where /proc/<pid>/stat ticks in 10 ms.
    """
    return sum(_process_cpu(each) for each in tree(pid))


def _process_cpu(pid: int) -> float:
    try:
        if sys.platform == "linux":
            return time.clock_gettime((~pid << 3) | 2)
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except (OSError, psutil.NoSuchProcess):
        return 0.0


def memory(pid: int) -> Memory:
    """Resident memory of the tree of `pid` now."""
    rss = pss = 0
    for each in tree(pid):
        try:
            process = psutil.Process(each)
            own = process.memory_info().rss
            rss += own
            pss += getattr(process.memory_full_info(), "pss", own)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:  # another user's process: only rss is shown to us
            pss += own
    return Memory(rss / 1e6, pss / 1e6)


def busy() -> str | None:
    """Why this is a bad moment to measure, or None: the load average should be under 0.4 a core."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.4 * cores:
        return f"The load average is {load:.1f} on {cores} cores: something else is running."
    return None


def machine() -> str:
    """The machine in words: cores, memory, kernel, Python."""
    memory_gb = psutil.virtual_memory().total / 1e9
    kernel = platform.release().split("-")[0]
    return (
        f"{os.cpu_count()} cores ({_processor()}, {platform.machine()}), {memory_gb:.0f} GB, "
        f"{platform.system()} {kernel}, Python {platform.python_version()}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines: Iterable[str] = info.read_text().splitlines() if info.exists() else ()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
