"""What a watched run costs beside a bare `llamafactory-cli`: the same settings on the same rows, turn by turn.

A watched run is the worker's whole care for a trainer, from its start to the judgement of what came out; data checks,
the gate and registration are not in it, as a bare trainer has none. Must not know how the figures are shown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Sample
from bench.training_worker import lay_out
from training.interpreter import Interpreter

STEPS = 150


class RunFailed(Exception):
    """A run ended badly; the message says where its log is."""


@dataclass(frozen=True, slots=True)
class Training:
    """samples: of each round of `bare` and `watched`: wall_s, cpu_s of all, own_s of that the worker's."""

    steps: int
    samples: dict[str, list[Sample]]


def training(python: Path, scratch: Path, *, rounds: int, steps: int = STEPS, say: Callable[[str], None]) -> Training:
    """Run both, each first in every other round. python: of the training environment. RunFailed."""
    samples: dict[str, list[Sample]] = {"bare": [], "watched": []}
    ways = {"bare": bare, "watched": watched}
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            folder = scratch / f"{name}-{number}"
            folder.mkdir()
            samples[name].append(ways[name](python, folder, steps))
            say(f"round {number + 1} of {rounds}, {name}: {samples[name][-1]['wall_s']:.1f} s")
    return Training(steps, samples)


def bare(python: Path, folder: Path, steps: int) -> Sample:
    """LLaMA-Factory as its manual says, with the environment that the runner gives it."""
    settings, interpreter = lay_out(folder, steps), Interpreter(python)
    env = interpreter.environment(folder) | {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with (folder / "run.log").open("wb") as log:
        child = subprocess.Popen(
            [interpreter.llamafactory, "train", str(settings)], env=env, cwd=folder, stdout=log, stderr=log
        )
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RunFailed(f"LLaMA-Factory ended with {child.returncode}; {folder / 'run.log'} says why.")
    return {"wall_s": time.monotonic() - began, "cpu_s": used.ru_utime + used.ru_stime}


def watched(python: Path, folder: Path, steps: int) -> Sample:
    """The same as a job, with a worker that is a process of its own."""
    argv = [sys.executable, "-m", "bench.training_worker", str(folder), str(python), str(steps)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunFailed(f"The worker ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    taken: Sample = json.loads(done.stdout)
    return taken
