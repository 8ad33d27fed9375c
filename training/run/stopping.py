"""How a trainer is ended: asked to finish its step and save, then told to go, then killed with all that it started.

SIGABRT goes only to processes that catch it: LLaMA-Factory's trainer does (with LLAMABOARD_ENABLED=1), torchrun's agent
does not and would leave its workers behind. Must not know jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from training.run.process import Trainer, marked, tree


@dataclass(frozen=True, slots=True)
class Grace:
    """Seconds: to finish a step and save; longer while files still change; to go after SIGTERM; between two looks.

    torchrun's agent gives its workers 30 s after SIGTERM, hence more than that.
    """

    save_s: float = 15.0
    saving_s: float = 120.0
    leave_s: float = 35.0
    poll_s: float = 0.1


async def stop(
    trainer: Trainer, job_id: str, output: Path, grace: Grace, *, saving: bool = True, to_go_on: bool = False
) -> str:
    """End the trainer and its tree; says how: `saved`, `ended` or `killed`. `saving` False: at once, by SIGTERM.

    to_go_on: a checkpoint is wanted rather than a final adapter. A trainer that catches SIGTERM (its setting
    `enable_jit_checkpoint`) writes one of this very step then; else the last one has to do.
    """
    processes = await asyncio.to_thread(tree, trainer, job_id)
    number = signal.SIGABRT
    if to_go_on and catches(trainer.pid, signal.SIGTERM):
        number = signal.SIGTERM
    listeners = [process for process in processes if catches(process.pid, number)]
    how = "ended"
    if saving and listeners:
        _send(listeners, number)
        if await _gone(trainer, grace, grace.save_s, lambda: _changing(output, grace.save_s / 3)):
            how = "saved"
    if trainer.running():
        _send(await asyncio.to_thread(tree, trainer, job_id), signal.SIGTERM)
        if not await _gone(trainer, grace, grace.leave_s):
            how = "killed"
            _send(await asyncio.to_thread(tree, trainer, job_id), signal.SIGKILL)
    await sweep(job_id, grace)
    await _gone(trainer, grace, math.inf)  # killed: the kernel needs a moment, longer where its disk hangs
    return how


async def sweep(job_id: str, grace: Grace) -> int:
    """Kill what is left of a trainer that has ended: workers that outlived it. How many there were."""
    left = await asyncio.to_thread(marked, job_id)
    for _ in range(int(5 / grace.poll_s)):
        _send(left, signal.SIGKILL)
        if not await asyncio.to_thread(marked, job_id):
            break
        await asyncio.sleep(grace.poll_s)
    return len(left)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; where nobody can say (macOS), it is taken to have one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return not Path("/proc/self/status").exists() and psutil.pid_exists(pid)
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


async def _gone(trainer: Trainer, grace: Grace, within_s: float, more: Callable[[], bool] = lambda: False) -> bool:
    """Wait until it is gone; beyond `within_s` only while `more` says so, and never beyond `saving_s`."""
    begun = time.monotonic()
    while trainer.running():
        waited = time.monotonic() - begun
        if waited > within_s and (waited > max(within_s, grace.saving_s) or not more()):
            return False
        await asyncio.sleep(grace.poll_s)
    return True


def _changing(folder: Path, within_s: float) -> bool:
    """Whether a file below was written in the last seconds: a save is under way."""
    newest = 0.0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            newest = max(newest, file.stat().st_mtime)
    return time.time() - newest < within_s


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
