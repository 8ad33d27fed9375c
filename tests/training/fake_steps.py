"""What a worker does for a job, with the fake trainer: `recipe["fake"]` is its settings, and a few of these steps' own.

finish_waits, check_waits: a file that must be there first; away, launch_away, borrow_away: how often the gateway does
not answer; engine: a file that is there while the engine runs, which `borrow` takes away; unborrowable: why it cannot;
beside: the same file for a run that does not agree.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from adapters.errors import Conflict, InvalidRequest
from training.errors import DataRejected, GatewayAway
from training.steps import Finished, Launch, Tell
from training.types import Job, Outcome, Phase

TRAINER = Path(__file__).with_name("fake_trainer.py")


class FakeSteps:
    async def check(self, job: Job, folder: Path, tell: Tell) -> Mapping[str, Any]:
        fake = job.recipe["fake"]
        await _until_there(fake.get("check_waits"))
        if "refused" in fake:
            raise DataRejected(fake["refused"], param="training_file")
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / "train.jsonl").write_text("{}\n")
        return {"llamafactory": {"per_device_train_batch_size": 8, "learning_rate": 3e-4}, **fake.get("settled", {})}

    def launch(self, job: Job, folder: Path) -> Launch:
        fake = job.recipe["fake"]
        if fake.get("unlaunchable"):
            raise InvalidRequest("There is no training environment. `loragate doctor` says more.")
        if _begun(folder / "launch-tries") <= fake.get("launch_away", 0):
            raise GatewayAway("The gateway does not answer.")
        settings = folder / "train.json"
        settings.write_text(json.dumps({**fake, "output_dir": str(folder / "out")}))
        argv = (fake.get("program", sys.executable), "-I", str(TRAINER), str(settings))
        env = {"PATH": os.defpath, "PYTHONUTF8": "1"}
        return Launch(argv, env, folder, folder / "run.log", folder / "out", fake.get("planned"))

    async def paused(self, job: Job) -> bool:
        fake = job.recipe["fake"]
        if "beside" in fake and not await asyncio.to_thread(Path(fake["beside"]).exists):
            raise GatewayAway("The engine that serves beside is not running now: the run starts when it is.")
        return "engine" in fake and not await asyncio.to_thread(Path(fake["engine"]).exists)

    async def borrow(self, job: Job, seconds: float) -> bool:
        fake = job.recipe["fake"]
        if "engine" not in fake:
            return False
        engine = Path(fake["engine"])
        begun = await asyncio.to_thread(_begun, engine.with_name("borrow-tries"))
        if begun <= fake.get("borrow_away", 0):
            raise GatewayAway("The gateway does not answer.")
        if "unborrowable" in fake:
            raise Conflict(fake["unborrowable"])
        await asyncio.to_thread(engine.unlink, missing_ok=True)
        return True

    async def give_back(self, job: Job) -> None:
        await asyncio.to_thread(Path(job.recipe["fake"]["engine"]).write_text, "runs")

    async def finish(self, job: Job, folder: Path, tell: Tell, phase: Callable[[Phase], Awaitable[None]]) -> Finished:
        fake = job.recipe["fake"]
        if _begun(folder / "finish-tries") <= fake.get("away", 0):
            raise GatewayAway("The gateway does not answer.")
        if "unregistrable" in fake:
            raise InvalidRequest(fake["unregistrable"])
        await phase(Phase.EVALUATING)
        await _until_there(fake.get("finish_waits"))
        await phase(Phase.PUTTING_LIVE)
        await _until_there(fake.get("live_waits"))
        weights = (folder / "out" / "adapter_model.safetensors").read_bytes()
        return Finished(Outcome.REGISTERED, {"version": hashlib.sha256(weights).hexdigest()[:12]})


def _begun(tries: Path) -> int:
    """How often, with this time."""
    begun = int(tries.read_text()) + 1 if tries.exists() else 1
    tries.write_text(str(begun))
    return begun


async def _until_there(name: str | None) -> None:
    while name is not None and not await asyncio.to_thread(Path(name).exists):
        await asyncio.sleep(0.01)


def weights_after(steps: int) -> bytes:
    """What the fake trainer's weights are after so many steps."""
    weights = hashlib.sha256(b"base").digest()
    for step in range(1, steps + 1):
        weights = hashlib.sha256(weights + str(step).encode()).digest()
    return weights
