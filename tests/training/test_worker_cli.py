"""`loragate worker` as people start it: a real process, one per data directory, ended by a signal."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from adapters.db import Database
from tests.training.fake_steps import FakeSteps, weights_after
from tests.training.shop import ROOT, Shop
from training.types import JobState


def open_steps(data: Path, db: Database, admin_url: str) -> FakeSteps:
    """What `--steps` names."""
    assert admin_url.startswith("http://127.0.0.1:")
    return FakeSteps()


def start(shop: Shop, *more: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "gateway", "worker", "--steps", f"{__name__}:open_steps", *more]
    environ = {**os.environ, "LORAGATE_HOME": str(shop.places.data)}
    return subprocess.Popen(argv, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


async def test_once_and_the_document(shop: Shop) -> None:
    job = await shop.add(max_steps=6)
    code, out, err = await asyncio.to_thread(ended, start(shop, "--once", "--json"))
    assert code == 0, err
    document = json.loads(out)
    assert document["jobs"] == [{"id": job.id, "name": "customer-service", "state": "succeeded"}]
    assert document["worker"] in err
    assert document["worker"] == (shop.places.worker_id.read_text().strip())
    assert shop.weights(job.id) == weights_after(6)
    again = json.loads((await asyncio.to_thread(ended, start(shop, "--once", "--json")))[1])
    assert again == {**document, "jobs": []}


async def test_one_per_data_directory_and_ended_by_a_signal(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 4)
    first = start(shop)
    await shop.until_step(job.id, 4)
    code, _, err = await asyncio.to_thread(ended, start(shop))
    assert code == 1
    assert f"A worker already runs (process {first.pid})" in err
    first.send_signal(signal.SIGTERM)
    code, out, _ = await asyncio.to_thread(ended, first)
    assert (code, out) == (0, "")
    assert (await shop.jobs.show(job.id)).state is JobState.RUNNING  # the trainer goes on
    shop.let("gate", 100)
    await shop.work()
    assert len(shop.starts(job.id)) == 1


def start_below(shop: Shop) -> subprocess.Popen[str]:
    """A shell that starts a worker as `up` does, and waits for it."""
    worker = shlex.join([sys.executable, "-m", "gateway", "worker", "--steps", f"{__name__}:open_steps"])
    environ = {**os.environ, "LORAGATE_HOME": str(shop.places.data)}
    words = f"{worker} --parent $$ & wait"
    return subprocess.Popen(["sh", "-c", words], cwd=ROOT, env=environ, text=True, stderr=subprocess.PIPE)


async def test_a_worker_does_not_outlive_the_gateway_that_started_it(shop: Shop) -> None:
    """`up` says who it is; killed, it can end nothing itself."""
    parent = start_below(shop)
    assert parent.stderr is not None
    assert "takes training jobs" in await asyncio.to_thread(parent.stderr.readline)
    parent.kill()
    await asyncio.to_thread(parent.wait)
    # The worker has the other end of the pipe: it closes when the worker is gone.
    await asyncio.wait_for(asyncio.to_thread(parent.stderr.read), 60)
    parent.stderr.close()
    job = await shop.add(max_steps=6)
    code, _, err = await asyncio.to_thread(ended, start(shop, "--once"))  # the lock is free
    assert code == 0, err
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
