"""The trainer as a process: started in a session of its own, known again after a crash, found by its mark.

process.json names it (pid, the kernel's start time, boot), its environment carries the job's id: whichever of the two
a crash left behind is enough. Must not know what the trainer does or why it is ended.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from training.steps import Launch

MARK = "LORAGATE_JOB"  # in the environment of the trainer and of all that it starts
FILE = "process.json"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the trainer.

    device: its CUDA_VISIBLE_DEVICES; from_step: of the checkpoint that it went on from; tries: starts from that step,
    this one included; log_from: bytes of the log that are older; stopping: we ended it; over: judged already; alone:
    an engine was stopped for it.
    """

    pid: int
    started: str
    boot: str
    device: str = ""
    from_step: int = 0
    tries: int = 1
    log_from: int = 0
    stopping: bool = False
    over: bool = False
    alone: bool = False


class Trainer:
    """A trainer that runs, ours by birth (then its exit code will be known) or adopted."""

    def __init__(self, attempt: Attempt, child: subprocess.Popen[bytes] | None = None) -> None:
        self.attempt = attempt
        self._child = child

    @property
    def pid(self) -> int:
        return self.attempt.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None where it runs, or where nobody can know."""
        return None if self._child is None else self._child.returncode

    def running(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return alive(self.attempt)

    def leave(self) -> None:
        """It goes on without us."""
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = 0  # else Popen complains that it was forgotten


def spawn(
    launch: Launch, job_id: str, folder: Path, device: str, from_step: int, tries: int, alone: bool = False
) -> Trainer:
    """Start it, and write down which one it is. OSError where the program cannot be started."""
    environment = {
        "LLAMABOARD_ENABLED": "1",  # SIGABRT then means: stop after this step, and save
        "LLAMABOARD_WORKDIR": str(launch.cwd),
        **({"RECORD_VRAM": "1"} if device else {}),
        **launch.env,
        "CUDA_VISIBLE_DEVICES": device,  # more than one, and LLaMA-Factory starts torchrun by itself
        MARK: job_id,
    }
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    # Output goes to a file: a pipe that nobody drains stops the trainer when it is full, or when we die.
    with launch.log.open("ab") as output:
        log_from = output.tell()
        child = subprocess.Popen(
            launch.argv,
            cwd=launch.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    attempt = Attempt(child.pid, start_time(child.pid), boot(), device, from_step, tries, log_from, alone=alone)
    try:
        write(folder, attempt)
    except OSError:  # it would run, and nobody would know
        child.kill()
        child.wait()
        raise
    return Trainer(attempt, child)


def find(job_id: str, folder: Path) -> Trainer | None:
    """The trainer of this job that runs, whoever started it. Workers that outlived a known trainer are none."""
    attempt = read(folder)
    if attempt is not None and alive(attempt):
        return Trainer(attempt)
    if attempt is None or attempt.over:
        for process in marked(job_id):
            if _leads(process.pid):  # started, and its worker was killed before that was written down
                known = attempt or Attempt(0, "", "")
                pid, began = process.pid, start_time(process.pid)
                found = replace(known, pid=pid, started=began, boot=boot(), over=False, stopping=False)
                write(folder, found)
                return Trainer(found)
    return None


def marked(job_id: str) -> list[psutil.Process]:
    """Every process of this user that runs for the job, orphans included."""
    return [process for process, job in _marks() if job == job_id]


def tree(trainer: Trainer, job_id: str) -> list[psutil.Process]:
    """The trainer, all below it, and all that carry its mark, the trainer first."""
    found: dict[int, psutil.Process] = {}
    if trainer.running():  # a pid that is free may be anybody's by now
        try:
            top = psutil.Process(trainer.pid)
            for process in (top, *top.children(recursive=True)):
                found[process.pid] = process
        except psutil.Error:
            pass
    for process in marked(job_id):
        found.setdefault(process.pid, process)
    return list(found.values())


def alive(attempt: Attempt) -> bool:
    """Whether that very process runs: same boot, same start, not only a name in the table."""
    try:
        if attempt.boot != boot() or attempt.started != start_time(attempt.pid):
            return False
        return bool(psutil.Process(attempt.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def read(folder: Path) -> Attempt | None:
    """What process.json says; None where there is none, or none that can be read."""
    try:
        return Attempt(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def alone(jobs: Path) -> tuple[str, ...]:
    """Of the jobs in the folder `jobs`, those whose trainer runs with an engine stopped for it."""
    found = []
    for file in jobs.glob(f"*/{FILE}"):
        attempt = read(file.parent)
        if attempt is not None and attempt.alone and alive(attempt):
            found.append(file.parent.name)
    return tuple(sorted(found))


def write(folder: Path, attempt: Attempt) -> None:
    """Whole or not at all."""
    fresh = folder / f".{FILE}.new"
    fresh.write_text(json.dumps(asdict(attempt)) + "\n", encoding="utf-8")
    os.replace(fresh, folder / FILE)


def start_time(pid: int) -> str:
    """When the kernel says that it began, in words that no change of the clock touches. "" where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return f"ticks {fields[19]}"
    except (OSError, IndexError):
        pass
    try:
        return f"at {psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def boot() -> str:
    """Which start of this machine it is: pids mean nothing beyond one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _marks() -> Iterator[tuple[psutil.Process, str]]:
    """Processes of this user with a job's mark, and which."""
    user = os.getuid()
    for process in psutil.process_iter():
        try:
            if process.uids().real == user and process.status() != psutil.STATUS_ZOMBIE:
                job = process.environ().get(MARK)
                if job is not None:
                    yield process, job
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or not ours to look at
