"""The whole product on one machine, killed in the middle of a run: gateway, worker and trainer, as their processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.local.places import Places
from gateway.pausing import REASON
from tests import ports
from tests.fake_vllm import FakeVLLM
from tests.local.conftest import PATIENCE_S, ROOT, until
from tests.local.test_up import Up
from tests.training.bases import DEMO
from tests.training.fake_environment import fake_environment, trains
from training.run import process

ROWS = DEMO / "data" / "customer-service.jsonl"
RECIPE: dict[str, Any] = {
    "name": "customer-service",
    "data": {"train": str(ROWS)},
    "training": {"max_steps": 40, "save_steps": 5, "logging_steps": 1},
    "gate": None,
    "then": "promote",
}


@dataclass
class Whole:
    """One `loragate up` with its worker, and both its ports."""

    up: Up
    places: Places
    admin: httpx.AsyncClient
    caller: httpx.AsyncClient

    def worker(self) -> psutil.Process | None:
        below = psutil.Process(self.up.child.pid).children()
        return next((child for child in below if "worker" in child.cmdline()), None)

    async def kill(self) -> None:
        """Both at once, the gateway first: it can start no other worker."""
        worker = self.worker()
        assert worker is not None
        self.up.child.kill()
        worker.kill()
        await self.up.child.wait()
        await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)

    async def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin.get(f"/admin/v1/jobs/{job_id}")).json()
        return found

    async def until_step(self, job_id: str, step: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while ((await self.job(job_id))["progress"] or {}).get("step", 0) < step:
                await asyncio.sleep(0.05)

    async def until_over(self, job_id: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while (found := await self.job(job_id))["state"] not in ("succeeded", "failed"):
                await asyncio.sleep(0.05)
        return found

    async def said(self, job_id: str) -> list[str]:
        page = (await self.admin.get(f"/admin/v1/jobs/{job_id}/events", params={"limit": 1000})).json()
        return [each["message"] for each in page["data"] if each["kind"] == "message"]

    async def asked(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Where is my parcel?"}]}
        return await self.caller.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def whole(places: Places, environ: dict[str, str], *flags: str) -> AsyncIterator[Whole]:
    """`loragate up`, ready; killed or not, nothing of it is left at the end of the block."""
    up = Up.__new__(Up)
    up.port, up.admin_port = ports.unused(), ports.unused()
    up.out, up.err = (places.data.parent / f"{up.port}.{name}" for name in ("out", "err"))
    listen = ("--port", str(up.port), "--admin-port", str(up.admin_port), *flags)
    argv = (sys.executable, "-m", "gateway", "up", "--data-dir", str(places.data), *listen)
    with up.out.open("wb") as out, up.err.open("wb") as err:
        up.child = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, env=environ, stdout=out, stderr=err)
    try:
        await up.ready()
        admin, key = places.admin_key.read_text().strip(), places.demo_key.read_text().strip()
        async with (
            _client(up.admin_port, admin) as for_admin,
            _client(up.port, key) as for_caller,
        ):
            yield Whole(up, places, for_admin, for_caller)
    finally:
        await up.end()


def _client(port: int, key: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30, trust_env=False)


@pytest.mark.timeout(180)
async def test_killed_in_the_middle_of_a_run_it_comes_to_the_same_end_once(
    places: Places, offline: dict[str, str], tmp_path: Path
) -> None:
    python, gate = fake_environment(tmp_path / "training"), tmp_path / "gate"
    trains(python, lora=192, gate=str(gate), children=1)
    environ = {**offline, "LORAGATE_TRAINING_PYTHON": str(python)}
    gate.write_text("7")
    async with FakeVLLM(model_path=str(DEMO / "base")) as engine:
        async with whole(places, environ, "--engine", engine.url) as first:
            made = await first.admin.post("/admin/v1/jobs", json={"recipe": RECIPE})
            job = made.json()["id"]
            await first.until_step(job, 7)
            assert (await first.asked("demo-base")).status_code == 200
            await first.kill()
        trainer = process.find(job, places.data / "training" / "jobs" / job)
        assert trainer is not None  # it does not need them
        gate.write_text("12")
        async with whole(places, environ, "--engine", engine.url) as second:
            await second.until_step(job, 12)
            said = await second.said(job)
            assert said.count("The trainer was found running, and is watched again") == 1
            os.kill(trainer.pid, signal.SIGKILL)
            gate.write_text("100")
            done = await second.until_over(job)
            assert (done["state"], done["outcome"], done["error"]) == ("succeeded", "promoted", None)
            assert done["attempts"] == 2
            said = await second.said(job)
            assert said.count("Training starts on the processor") == 1
            assert said.count("Training goes on from step 10, on the processor") == 1
            assert said.count("The job has successfully completed") == 1
            adapter = (await second.admin.get("/admin/v1/adapters/customer-service")).json()
            assert [each["version"] for each in adapter["versions"]] == [adapter["live"]]
            answer = await second.asked("customer-service")
            assert (answer.status_code, answer.json()["model"]) == (200, f"customer-service@{adapter['live']}")
            worker = second.worker()
            assert worker is not None
            assert await second.up.end() == 0
        assert process.marked(job) == []  # the trainers' children too
        assert not worker.is_running()
    folder = places.data / "training" / "jobs" / job
    assert not (folder / "two-at-once").exists()
    assert len((folder / "starts").read_text().split()) == 2


# A GPU that the engine fills while it runs.
SMI = """#!/bin/sh
case "$1" in *query-gpu=name*) echo "NVIDIA Fake, 81559, 550.1"; exit;; esac
if [ -e '{engine}' ]; then used=81550; else used=10; fi
echo "0, GPU-1, $used, 81559, 3"
"""


@pytest.mark.timeout(180)
async def test_one_gpu_serves_trains_and_serves_again(
    places: Places, offline: dict[str, str], engine_python: Path, tmp_path: Path
) -> None:
    """And the worker is killed in between: another finds trainer and engine as they are to be."""
    python, gate, program = fake_environment(tmp_path / "training"), tmp_path / "gate", tmp_path / "bin" / "nvidia-smi"
    trains(python, lora=192, gate=str(gate))
    program.parent.mkdir()
    program.write_text(SMI.format(engine=places.engine_pid))
    program.chmod(0o755)
    environ = {**offline, "LORAGATE_TRAINING_PYTHON": str(python), "LORAGATE_ENGINE_PYTHON": str(engine_python)}
    environ["PATH"] = f"{program.parent}{os.pathsep}{environ['PATH']}"
    gate.write_text("7")
    async with whole(places, environ) as one:
        refused = (await one.admin.post("/admin/v1/jobs", json={"recipe": RECIPE})).json()["id"]
        error = (await one.until_over(refused))["error"]
        assert (error["code"], "and GPU 0 has 0.0 of 85.5 GB free" in error["message"]) == ("gpu_memory", True)
        assert (await one.asked("customer-service")).status_code == 200
        job = (await one.admin.post("/admin/v1/jobs", json={"recipe": {**RECIPE, "pause_engine": True}})).json()["id"]
        await one.until_step(job, 7)
        assert not places.engine_pid.exists()
        answer = await one.asked("customer-service")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
        assert (await one.caller.get("/readyz")).json()["reasons"] == [REASON]
        first = one.worker()
        assert first is not None
        first.kill()
        gate.write_text("12")
        await one.until_step(job, 12)
        assert not places.engine_pid.exists()
        gate.write_text("100")
        done = await one.until_over(job)
        assert (done["state"], done["outcome"], done["attempts"]) == ("succeeded", "promoted", 1)
        assert places.engine_pid.exists()
        answer = await one.asked("customer-service")
        assert answer.headers["x-loragate-model"] == done["result"]["model"]
        assert f"vLLM was ended: {REASON}.\nvLLM is ready again.\n" in one.up.err.read_text()
