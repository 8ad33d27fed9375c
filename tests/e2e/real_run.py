"""A worker whose runs are real LLaMA-Factory on the demo's base: `python -m tests.e2e.real_run DATA PYTHON`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from adapters.db import Database
from training.demo import DEMO, QUICK, child_environment, recipe, write_job
from training.places import Places
from training.run.carrier import Workshop
from training.run.record import Record
from training.run.telling import Pace
from training.steps import Finished, Launch, Tell
from training.types import Job, Outcome, Phase
from training.worker import Rhythm, Worker, identity

STEPS = 24


class RealSteps:
    def __init__(self, python: Path) -> None:
        self._python = python

    async def check(self, job: Job, folder: Path, tell: Tell) -> Mapping[str, Any]:
        made = write_job(folder / "data", DEMO / "data" / "customer-service.jsonl", DEMO / "base", QUICK).parent
        settings = recipe(made, DEMO / "base", QUICK) | {
            "output_dir": str(folder / "out"),
            "max_steps": STEPS,
            "logging_steps": 2,
            "save_strategy": "steps",
            "save_steps": 4,
            "include_num_input_tokens_seen": True,
            "enable_jit_checkpoint": True,
        }
        (folder / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return {"llamafactory": json.loads(json.dumps(settings))}

    def launch(self, job: Job, folder: Path) -> Launch:
        argv = (str(self._python.with_name("llamafactory-cli")), "train", str(folder / "train.yaml"))
        # One thread: on a busy machine two that wait for each other at every operation take ten times as long.
        env = child_environment(self._python, folder, os.environ) | {"OMP_NUM_THREADS": "1"}
        return Launch(argv, env, folder, folder / "run.log", folder / "out", STEPS)

    async def paused(self, job: Job) -> bool:
        return False

    async def borrow(self, job: Job, seconds: float) -> bool:
        return False

    async def give_back(self, job: Job) -> None:
        raise AssertionError("nothing was borrowed")

    async def finish(self, job: Job, folder: Path, tell: Tell, phase: Callable[[Phase], Awaitable[None]]) -> Finished:
        return Finished(Outcome.REGISTERED, {"adapter": str(folder / "out")})


def worker(db: Database, places: Places, python: Path) -> Worker:
    record = Record(db, identity(places, os.urandom), time.time)
    shop = Workshop(record, RealSteps(python), places, Pace(look_s=0.2, progress_s=0.2), again_s=0.1)
    return Worker(shop, rhythm=Rhythm(look_s=0.2))


async def _main(data: Path, python: Path) -> None:
    db = Database.open(f"sqlite:///{data / 'loragate.db'}")
    await worker(db, Places(data), python).run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2])))
