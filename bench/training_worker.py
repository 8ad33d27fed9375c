"""A worker with one job on the demo's base: `python -m bench.training_worker FOLDER PYTHON STEPS` prints what it took.

The worker and all that it does for a trainer are the product's own, at the product's own pace.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from adapters.db import Database
from training.demo import DEMO, QUICK, recipe, write_job
from training.interpreter import Interpreter
from training.places import Places
from training.run.carrier import Workshop
from training.run.record import Record
from training.service import JobService
from training.steps import Finished, Launch, Tell
from training.types import Job, JobState, Outcome, Phase
from training.worker import Worker, identity


def lay_out(folder: Path, steps: int) -> Path:
    """The settings file of a run of `steps` steps, logged and saved as runs are."""
    job = write_job(folder / "data", DEMO / "data" / "customer-service.jsonl", DEMO / "base", QUICK).parent
    settings = recipe(job, job / "base", QUICK) | {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "logging_steps": max(1, steps // 100),
        "save_strategy": "steps",
        "save_steps": max(1, steps // 10),
        "save_total_limit": 3,
        "include_num_input_tokens_seen": True,
    }
    target = folder / "train.yaml"
    target.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return target


class Timed:
    """The steps of a job that only trains, and the clocks at its beginning and end."""

    def __init__(self, python: Path, steps: int) -> None:
        self._python, self._steps = Interpreter(python), steps
        self._began = (0.0, 0.0)
        self.wall_s = self.own_s = 0.0

    async def check(self, job: Job, folder: Path, tell: Tell) -> Mapping[str, Any]:
        lay_out(folder, self._steps)
        return {}

    def launch(self, job: Job, folder: Path) -> Launch:
        self._began = (time.monotonic(), time.process_time())
        argv = (self._python.llamafactory, "train", str(folder / "train.yaml"))
        env = self._python.environment(folder) | {"OMP_NUM_THREADS": "1"}
        return Launch(argv, env, folder, folder / "run.log", folder / "out", self._steps)

    async def paused(self, job: Job) -> bool:
        return False

    async def borrow(self, job: Job, seconds: float) -> bool:
        return False

    async def give_back(self, job: Job) -> None:
        raise AssertionError("nothing was borrowed")

    async def finish(self, job: Job, folder: Path, tell: Tell, phase: Callable[[Phase], Awaitable[None]]) -> Finished:
        self.wall_s, self.own_s = time.monotonic() - self._began[0], time.process_time() - self._began[1]
        return Finished(Outcome.REGISTERED, {})


async def main(data: Path, python: Path, steps: int) -> int:
    """0 and the seconds on stdout; 1 and the reason on stderr."""
    db = Database.open(f"sqlite:///{data / 'loragate.db'}")
    db.migrate()
    places, timed = Places(data), Timed(python, steps)
    jobs = JobService(db, clock=time.time, random_bytes=os.urandom)
    job = await jobs.create("bench", {})
    shop = Workshop(Record(db, identity(places, os.urandom), time.time), timed, places)
    await Worker(shop).run(asyncio.Event(), once=True)
    done = await jobs.show(job.id)
    db.close()
    if done.state is not JobState.SUCCEEDED:
        print(done.error.message if done.error is not None else done.state, file=sys.stderr)
        return 1
    trainer = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = trainer.ru_utime + trainer.ru_stime
    print(json.dumps({"wall_s": timed.wall_s, "cpu_s": used + timed.own_s, "own_s": timed.own_s}))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
