"""kill -9 of workers and trainers, wherever they are: the next worker finds what is there and comes to the same end."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from adapters.errors import ServiceError
from gateway.local.locks import hold
from tests.training.fake_steps import FakeSteps, weights_after
from tests.training.shop import Shop
from training import store_jobs as store
from training.run import process
from training.types import Job, JobState, Outcome


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def interrupted(shop: Shop, job: Job, when: Callable[[Job], bool]) -> None:
    """A worker that is killed as soon as the job is like that."""
    worker = shop.child()
    try:
        await shop.until(job.id, when)
    finally:
        kill(worker)


@pytest.mark.timeout(300)
async def test_killed_after_every_event_it_comes_to_the_same_end(shop: Shop) -> None:
    job = await shop.add(max_steps=12, logging_steps=4, save_steps=3, step_s=0.05)
    moment, kills, seen = random.Random(4), 0, 2
    while not (await shop.jobs.show(job.id)).is_final:
        worker = shop.child()
        while len(await shop.events(job.id)) <= seen and not (await shop.jobs.show(job.id)).is_final:
            await asyncio.sleep(0.005)
        await asyncio.sleep(moment.uniform(0, 0.02))
        kill(worker)
        kills += 1
        seen = len(await shop.events(job.id))
    done = await shop.jobs.show(job.id)
    assert (done.state, done.error, kills > 3) == (JobState.SUCCEEDED, None, True)
    assert shop.weights(job.id) == weights_after(12)
    assert not (shop.places.job(job.id) / "two-at-once").exists()
    steps = [line["step"] for line in await shop.figures(job.id)]
    assert len(steps) == len(set(steps))


async def test_worker_and_trainer_killed_again_and_again(shop: Shop) -> None:
    job = await shop.add(max_steps=40, logging_steps=2, save_steps=5, gate=shop.gate())
    for step in (7, 16, 28):
        shop.let("gate", step)
        worker = shop.child()
        await shop.until_step(job.id, step - 1)
        trainer = shop.starts(job.id)[-1]
        kill(worker)
        os.kill(trainer, signal.SIGKILL)
    shop.let("gate", 100)
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 4)
    assert shop.weights(job.id) == weights_after(40)
    said = await shop.said(job.id)
    assert [line for line in said if line.startswith("Training")] == [
        "Training starts on the processor",
        "Training goes on from step 5, on the processor",
        "Training goes on from step 15, on the processor",
        "Training goes on from step 25, on the processor",
    ]


async def test_a_trainer_that_lives_is_adopted(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate(), children=1)
    shop.let("gate", 6)
    await interrupted(shop, job, lambda job: job.progress is not None and job.progress.step >= 6)
    shop.let("gate", 100)
    await shop.work()
    assert len(shop.starts(job.id)) == 1
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    assert "The trainer was found running, and is watched again" in await shop.said(job.id)
    assert process.marked(job.id) == []


async def test_a_trainer_whose_start_was_not_written_down_is_found_by_its_mark(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    await interrupted(shop, job, lambda job: job.progress is not None and job.progress.step >= 6)
    (shop.places.job(job.id) / process.FILE).unlink()
    shop.let("gate", 100)
    await shop.work()
    assert len(shop.starts(job.id)) == 1
    assert shop.weights(job.id) == weights_after(20)


async def test_a_trainer_that_ended_while_nobody_watched(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    await interrupted(shop, job, lambda job: job.progress is not None and job.progress.step >= 6)
    trainer = psutil.Process(shop.starts(job.id)[0])
    shop.let("gate", 100)
    while trainer.is_running() and trainer.status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.01)
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1)
    assert done.progress is not None
    assert done.progress.step == 20


async def test_a_stop_survives_the_worker(shop: Shop) -> None:
    job = await shop.add(max_steps=100, gate=shop.gate(), hangs_at=8)
    shop.let("gate", 100)
    worker = shop.child()
    await shop.until_step(job.id, 8)
    await shop.jobs.cancel(job.id, keep=True)
    attempt = process.read(shop.places.job(job.id))
    while attempt is None or not attempt.stopping:
        await asyncio.sleep(0.01)
        attempt = process.read(shop.places.job(job.id))
    kill(worker)
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.outcome) == (JobState.CANCELLED, Outcome.PARTIAL)
    assert process.marked(job.id) == []


async def test_a_worker_that_ends_leaves_its_run_going(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    worker = shop.child()
    await shop.until_step(job.id, 6)
    worker.terminate()
    assert await asyncio.to_thread(worker.wait, 30) == 0
    assert psutil.pid_exists(shop.starts(job.id)[0])
    shop.let("gate", 100)
    await shop.work()
    assert len(shop.starts(job.id)) == 1


async def test_a_worker_that_is_to_stop_its_runs_puts_them_back(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate(), save_steps=3)
    shop.let("gate", 7)
    async with shop.working(stop_runs=True):
        await shop.until_step(job.id, 7)
    waiting = await shop.jobs.show(job.id)
    assert (waiting.state, waiting.worker) == (JobState.QUEUED, None)
    assert process.marked(job.id) == []
    shop.let("gate", 100)
    await shop.work()
    assert shop.weights(job.id) == weights_after(20)
    assert "Training goes on from step 6, on the processor" in await shop.said(job.id)


async def test_a_database_that_is_taken_away_ends_the_worker_and_not_its_run(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    worker = shop.child()
    await shop.until_step(job.id, 6)
    database, aside = shop.places.data / "loragate.db", shop.places.data / "aside.db"
    database.rename(aside)
    assert await asyncio.to_thread(worker.wait, 30) == 1
    aside.rename(database)
    assert psutil.pid_exists(shop.starts(job.id)[0])
    shop.let("gate", 100)
    await shop.work()
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    assert len(shop.starts(job.id)) == 1


async def test_a_worker_that_was_stopped_for_a_while(shop: Shop, tmp_path: Path) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    worker = shop.child()
    try:
        await shop.until_step(job.id, 6)
        worker.send_signal(signal.SIGSTOP)
        shop.let("gate", 100)
        trainer = psutil.Process(shop.starts(job.id)[0])
        while trainer.status() != psutil.STATUS_ZOMBIE:  # its parent does not look
            await asyncio.sleep(0.01)
        worker.send_signal(signal.SIGCONT)
        done = await shop.until_state(job.id, JobState.SUCCEEDED, JobState.FAILED)
    finally:
        kill(worker)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1)


def test_two_workers_in_one_data_directory_are_refused(tmp_path: Path) -> None:
    lock = tmp_path / "worker.lock"
    with hold(lock, "{pid}"), pytest.raises(ServiceError, match=str(os.getpid())), hold(lock, "{pid}"):
        pass


async def test_a_broken_newest_checkpoint_is_moved_aside(shop: Shop) -> None:
    job = await shop.add(max_steps=20, save_steps=5, dies_saving_at=15)
    await shop.work()
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    assert shop.weights(job.id) == weights_after(20)
    folder = shop.places.job(job.id)
    assert (folder / "broken" / "checkpoint-15").is_dir()
    said = await shop.said(job.id)
    assert "Training goes on from step 10, on the processor" in said
    assert any("checkpoint of step 15 cannot be used" in line for line in said)


async def test_three_tries_from_one_step_and_no_more(shop: Shop) -> None:
    job = await shop.add(max_steps=20, save_steps=5, dies_at=[7], dies_always=True)
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.outcome) == (JobState.FAILED, Outcome.PARTIAL)
    assert done.attempts == 4  # one from step 0, three from step 5
    assert done.error is not None
    assert done.error.code == "killed"
    assert "3 times without progress beyond step 5" in done.error.message
    assert done.error.try_this == {"training.batch_size": 4}


async def test_deaths_with_progress_between_them_are_forgiven(shop: Shop) -> None:
    job = await shop.add(max_steps=30, save_steps=2, dies_at=[3, 7, 11, 15, 19, 23])
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 7)
    assert shop.weights(job.id) == weights_after(30)


async def test_killed_before_any_checkpoint_with_a_final_adapter_left(shop: Shop) -> None:
    job = await shop.add(max_steps=20, save_steps=100, gate=shop.gate())
    shop.let("gate", 6)
    async with shop.working():
        await shop.until_step(job.id, 6)
        await shop.jobs.pause(job.id)
        await shop.until_state(job.id, JobState.PAUSED)
        assert (shop.places.job(job.id) / "out" / "adapter_model.safetensors").exists()
        await shop.jobs.resume(job.id)
        shop.let("gate", 100)
        await shop.until_state(job.id, JobState.SUCCEEDED)
    assert shop.weights(job.id) == weights_after(20)


async def test_a_job_from_another_boot_is_started_again(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 11)
    await interrupted(shop, job, lambda job: job.progress is not None and job.progress.step >= 11)
    os.kill(shop.starts(job.id)[0], signal.SIGKILL)
    folder = shop.places.job(job.id)
    attempt = process.read(folder)
    assert attempt is not None
    process.write(folder, replace(attempt, boot="another", pid=os.getpid()))  # a pid that is somebody else's now
    shop.let("gate", 100)
    await shop.work()
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    assert len(shop.starts(job.id)) == 2


async def test_a_job_whose_files_are_elsewhere_is_checked_anew(shop: Shop) -> None:
    job = await shop.add(max_steps=5)
    settled = await FakeSteps().check(job, _made(shop.places.job(job.id)), None)  # type: ignore[arg-type]
    await shop.db.write(lambda conn: _queued(conn, job.id, json.loads(json.dumps(settled))))
    shutil.rmtree(shop.places.job(job.id))
    await shop.work()
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    assert "Its files are not here: checked anew" in await shop.said(job.id)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _queued(conn: sa.Connection, job_id: str, settled: object) -> None:
    store.change(conn, job_id, state=JobState.QUEUED, settled=settled)
