"""Training in /metrics: jobs by state, and the figures of those that run."""

from __future__ import annotations

import os
import time
from pathlib import Path

from adapters.db import Database
from gateway.metrics import Metrics
from gateway.trainings import Trainings
from tests import databases
from training import store_jobs as store
from training.service import JobService
from training.types import JobState, Progress


async def test_states_and_figures_are_read_beforehand(tmp_path: Path) -> None:
    db = Database.open(databases.sqlite(tmp_path / "loragate.db"))
    jobs = JobService(db, clock=time.time, random_bytes=os.urandom)
    metrics = Metrics()
    assert b"loragate_training_jobs{" not in metrics.render()
    job = await jobs.create("customer-service", {})
    progress = Progress(step=5, steps=20, loss=1.5, eta_s=30.0)
    async with Trainings(jobs, metrics) as trainings:
        assert b'loragate_training_jobs{state="validating"} 1.0' in metrics.render()
        await db.write(lambda conn: store.change(conn, job.id, state=JobState.RUNNING, progress=progress))
        await trainings.read()
        shown = metrics.render().decode()
    db.close()
    assert 'loragate_training_jobs{state="validating"} 0.0' in shown
    assert 'loragate_training_jobs{state="running"} 1.0' in shown
    assert f'loragate_training_progress_ratio{{job="{job.id}"}} 0.25' in shown
    assert f'loragate_training_loss{{job="{job.id}"}} 1.5' in shown
    assert f'loragate_training_left_seconds{{job="{job.id}"}} 30.0' in shown
    assert "loragate_training_tokens_per_second{job=" not in shown
