"""A worker and real child processes: queue, slots, priorities, wishes, what a job says while it runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import psutil
import pytest
import sqlalchemy as sa

from tests.training.fake_steps import weights_after
from tests.training.shop import Shop
from training import store_jobs as store
from training.run import process
from training.types import JobState, Outcome


def left_over(job_id: str) -> list[psutil.Process]:
    return process.marked(job_id)


async def test_from_the_queue_to_the_result(shop: Shop) -> None:
    job = await shop.add(max_steps=20, logging_steps=2, save_steps=5, eval_steps=10, planned=20)
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.outcome, done.error) == (JobState.SUCCEEDED, Outcome.REGISTERED, None)
    assert (done.worker, done.phase, done.wish, done.attempts) == (None, None, None, 1)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.progress is not None
    assert (done.progress.step, done.progress.steps, done.progress.trained_tokens) == (20, 20, 1280)
    assert (done.progress.grad_norm, done.progress.eta_s) == (0.5, 0.0)
    assert shop.weights(job.id) == weights_after(20)
    assert await shop.said(job.id) == [
        f"Created fine-tuning job: {job.id}",
        "Validating the data and the settings",
        "Files and settings validated, moving job to queued state",
        "Fine-tuning job started",
        "Training starts on the processor",
        "Registering",
        "Evaluating",
        "Putting live",
        "The job has successfully completed",
    ]


async def test_figures_checkpoints_and_the_picture(shop: Shop) -> None:
    shop.pace = replace(shop.pace, picture_s=1000.0)
    job = await shop.add(max_steps=20, logging_steps=2, save_steps=5, eval_steps=10)
    await shop.work()
    figures = await shop.figures(job.id)
    assert sorted({line["step"] for line in figures}) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert {line["step"] for line in figures if "valid_loss" in line} == {10, 20}
    assert all(line["train_loss"] > 0 and line["total_steps"] == 20 for line in figures)
    checkpoints = await shop.jobs.checkpoints(job.id)
    assert [each.step for each in checkpoints] == [20, 15, 10, 5]
    assert checkpoints[0].metrics["grad_norm"] == 0.5
    assert checkpoints[0].metrics["valid_loss"] == pytest.approx(checkpoints[0].metrics["train_loss"] + 0.1)
    picture = shop.places.job(job.id) / "curve.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


async def test_rotated_checkpoints_are_forgotten(shop: Shop) -> None:
    job = await shop.add(max_steps=20, save_steps=2, save_total_limit=2, step_s=0.03)
    await shop.work()
    assert [each.step for each in await shop.jobs.checkpoints(job.id)] == [20, 18]


async def test_lines_are_bounded_however_long_the_run(shop: Shop) -> None:
    job = await shop.add(max_steps=6000, save_steps=6000, step_s=0)
    await shop.work()
    figures = await shop.figures(job.id)
    assert 1000 < len(figures) <= 1500
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED


async def test_a_check_that_refuses_fails_the_job_before_any_training(shop: Shop) -> None:
    job = await shop.add(refused="Row 3 has no answer.")
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.outcome, done.attempts) == (JobState.FAILED, Outcome.NOTHING, 0)
    assert done.error is not None
    assert (done.error.code, done.error.message, done.error.param) == (
        "invalid_file",
        "Row 3 has no answer.",
        "training_file",
    )


async def test_one_slot_and_priorities(shop: Shop) -> None:
    first = await shop.add(max_steps=5)
    low = await shop.add(max_steps=5, priority=-1)
    high = await shop.add(max_steps=5, priority=5)
    for job in (first, low, high):
        await shop.db.write(partial(_queue, job_id=job.id))
        (shop.places.job(job.id)).mkdir(parents=True)
    await shop.work()
    ended = [await shop.jobs.show(job.id) for job in (high, first, low)]
    began = [job.started_at or 0 for job in ended]
    assert began == sorted(began)
    assert all((job.finished_at or 0) > 0 and job.state is JobState.SUCCEEDED for job in ended)


def _queue(conn: sa.Connection, job_id: str) -> None:
    store.change(conn, job_id, state=JobState.QUEUED, settled={})


async def test_a_run_a_device_and_never_two_on_one(shop: Shop) -> None:
    jobs = [await shop.add(max_steps=3, gate=shop.gate(f"gate-{n}")) for n in range(3)]
    async with shop.working(("0", "1")):
        running = [await shop.until(job.id, lambda job: job.attempts == 1) for job in jobs[:2]]
        waiting = await shop.until_state(jobs[2].id, JobState.QUEUED)
        assert [job.state for job in running] == [JobState.RUNNING] * 2
        assert waiting.worker is None
        shop.let("gate-1", 3)
        await shop.until(jobs[2].id, lambda job: job.attempts == 1)
        shop.let("gate-0", 3)
        shop.let("gate-2", 3)
        for job in jobs:
            await shop.until_state(job.id, JobState.SUCCEEDED)
    logs = [(shop.places.job(job.id) / "run.log").read_text() for job in jobs]
    assert [log.split("'")[1] for log in logs] == ["0", "1", "1"]


async def test_a_run_on_several_devices_waits_until_they_are_free(shop: Shop) -> None:
    small = await shop.add(max_steps=3, gate=shop.gate())
    async with shop.working(("0", "1", "2")):
        await shop.until(small.id, lambda job: job.attempts == 1)
        large = await shop.add(max_steps=3, settled={"gpus": 3})
        await shop.until_state(large.id, JobState.QUEUED)
        shop.let("gate", 3)
        await shop.until_state(large.id, JobState.SUCCEEDED)
    began, ended = (await shop.jobs.show(large.id)).started_at, (await shop.jobs.show(small.id)).finished_at
    assert began is not None
    assert ended is not None
    assert "'0,1,2'" in (shop.places.job(large.id) / "run.log").read_text()


async def test_checks_run_beside_a_training_and_evaluations_free_the_device(shop: Shop) -> None:
    training = await shop.add(max_steps=3, gate=shop.gate(), finish_waits=shop.gate("finish"))
    async with shop.working():
        await shop.until(training.id, lambda job: job.attempts == 1)
        second = await shop.add(max_steps=3)
        await shop.until_state(second.id, JobState.QUEUED)
        shop.let("gate", 3)
        await shop.until_state(second.id, JobState.SUCCEEDED)  # while the first is evaluated
        assert (await shop.jobs.show(training.id)).state is JobState.RUNNING
        shop.let("finish", 1)
        await shop.until_state(training.id, JobState.SUCCEEDED)


async def test_cancel_throws_away(shop: Shop) -> None:
    job = await shop.add(max_steps=100, gate=shop.gate(), children=2)
    shop.let("gate", 7)
    async with shop.working():
        await shop.until_step(job.id, 6)
        await shop.jobs.cancel(job.id)
        done = await shop.until_state(job.id, JobState.CANCELLED)
    assert done.outcome is Outcome.NOTHING
    assert not (shop.places.job(job.id) / "out").exists()
    assert await shop.jobs.checkpoints(job.id) == ()
    assert left_over(job.id) == []


async def test_cancel_and_keep_saves_what_was_trained(shop: Shop) -> None:
    job = await shop.add(max_steps=100, gate=shop.gate())
    shop.let("gate", 7)
    async with shop.working():
        await shop.until_step(job.id, 7)
        await shop.jobs.cancel(job.id, keep=True)
        done = await shop.until_state(job.id, JobState.CANCELLED)
    assert done.outcome is Outcome.PARTIAL
    assert shop.weights(job.id) == weights_after(8)  # SIGABRT: the step is finished
    assert done.result is None


async def test_a_trainer_that_hears_nothing_is_killed_with_its_children(shop: Shop) -> None:
    shop.grace = type(shop.grace)(save_s=0.2, saving_s=0.3, leave_s=0.2, poll_s=0.02)
    job = await shop.add(max_steps=100, hangs_at=6, ignore_abort=True, ignore_term=True, children=2)
    async with shop.working():
        await shop.until_step(job.id, 6)
        assert len(left_over(job.id)) == 3
        await shop.jobs.cancel(job.id, keep=True)
        done = await shop.until_state(job.id, JobState.CANCELLED)
    assert done.outcome is Outcome.PARTIAL  # the checkpoint of step 5
    assert left_over(job.id) == []


async def test_stopped_while_the_model_loads(shop: Shop) -> None:
    job = await shop.add(max_steps=5, loading_s=600)
    async with shop.working():
        await shop.until(job.id, lambda job: job.attempts == 1)
        await shop.jobs.cancel(job.id, keep=True)
        done = await shop.until_state(job.id, JobState.CANCELLED)
    assert done.outcome is Outcome.NOTHING
    assert left_over(job.id) == []


async def test_pause_and_resume_to_the_same_weights(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate(), save_steps=5)
    shop.let("gate", 12)
    async with shop.working():
        await shop.until_step(job.id, 12)
        await shop.jobs.pause(job.id)
        paused = await shop.until_state(job.id, JobState.PAUSED)
        assert (paused.worker, paused.phase, paused.wish) == (None, None, None)
        assert left_over(job.id) == []
        shop.let("gate", 100)
        await shop.jobs.resume(job.id)
        done = await shop.until_state(job.id, JobState.SUCCEEDED)
    said = await shop.said(job.id)
    assert "Paused: it will go on from the checkpoint of step 10" in said
    assert "Training goes on from step 10, on the processor" in said
    assert shop.weights(job.id) == weights_after(20)
    assert done.attempts == 2
    told = [line["step"] for line in await shop.figures(job.id)]
    assert len(told) == len(set(told))  # the steps that were trained twice are told once


async def test_a_trainer_that_can_saves_the_very_step_when_it_is_paused(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate(), save_steps=5, jit=True)
    shop.let("gate", 12)
    async with shop.working():
        await shop.until_step(job.id, 12)
        await shop.jobs.pause(job.id)
        await shop.until_state(job.id, JobState.PAUSED)
        shop.let("gate", 100)
        await shop.jobs.resume(job.id)
        await shop.until_state(job.id, JobState.SUCCEEDED)
    assert "Training goes on from step 13, on the processor" in await shop.said(job.id)
    assert shop.weights(job.id) == weights_after(20)


async def test_a_pause_that_is_taken_back_goes_on(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate(), ignore_abort=True, step_s=0.02)
    shop.let("gate", 8)
    async with shop.working():
        await shop.until_step(job.id, 8)
        await shop.jobs.pause(job.id)
        attempt = process.read(shop.places.job(job.id))
        while attempt is None or not attempt.stopping:
            await asyncio.sleep(0.01)
            attempt = process.read(shop.places.job(job.id))
        await shop.jobs.resume(job.id)
        shop.let("gate", 100)
        done = await shop.until_state(job.id, JobState.SUCCEEDED, JobState.FAILED)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert shop.weights(job.id) == weights_after(20)


async def test_paused_before_and_during_its_check(shop: Shop) -> None:
    job = await shop.add(max_steps=5, check_waits=shop.gate("check"))
    await shop.jobs.pause(job.id)
    async with shop.working():
        await shop.jobs.resume(job.id)
        await shop.until(job.id, lambda job: job.worker is not None)
        await shop.jobs.pause(job.id)
        await shop.until_state(job.id, JobState.PAUSED)
        await shop.jobs.resume(job.id)
        shop.let("check", 1)
        await shop.until_state(job.id, JobState.SUCCEEDED)


async def test_cancelled_while_it_is_evaluated_but_not_while_it_is_put_live(shop: Shop) -> None:
    first = await shop.add(max_steps=3, finish_waits=shop.gate("never"))
    second = await shop.add(max_steps=3, live_waits=shop.gate("live"))
    async with shop.working(("0", "1")):
        await shop.until(first.id, lambda job: job.phase is not None and job.phase.value == "evaluating")
        await shop.jobs.cancel(first.id, keep=True)
        assert (await shop.until_state(first.id, JobState.CANCELLED)).outcome is Outcome.PARTIAL
        await shop.until(second.id, lambda job: job.phase is not None and job.phase.value == "putting live")
        await shop.jobs.cancel(second.id)
        shop.let("live", 1)
        assert (await shop.until_state(second.id, JobState.SUCCEEDED)).wish is None


async def test_a_gateway_that_is_away_is_waited_for(shop: Shop) -> None:
    job = await shop.add(max_steps=3, away=3)
    await shop.work()
    assert (await shop.jobs.show(job.id)).state is JobState.SUCCEEDED
    said = await shop.said(job.id)
    assert said.count("The gateway does not answer. It is tried again until it works.") == 1


async def test_a_gateway_that_is_away_as_the_trainer_is_to_start_is_waited_for(shop: Shop) -> None:
    job = await shop.add(max_steps=3, launch_away=3)
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.error, done.attempts) == (JobState.SUCCEEDED, None, 1)
    said = await shop.said(job.id)
    assert said.count("The gateway does not answer. It is tried again until it works.") == 1


async def test_a_job_can_be_cancelled_while_its_start_waits(shop: Shop) -> None:
    job = await shop.add(max_steps=3, launch_away=10**6)
    async with shop.working():
        await shop.until(job.id, lambda job: job.state is JobState.RUNNING)
        await shop.jobs.cancel(job.id)
        done = await shop.until_state(job.id, JobState.CANCELLED)
    assert (done.outcome, done.attempts) == (Outcome.NOTHING, 0)


async def test_a_trainer_that_cannot_be_watched_yet_does_not_outlive_its_cancelled_job(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    async with shop.working():
        await shop.until_step(job.id, 6)
    assert len(left_over(job.id)) == 1  # it goes on without a worker
    fake = {**job.recipe["fake"], "launch_away": 10**6}
    await shop.db.write(lambda conn: store.change(conn, job.id, recipe={"fake": fake}))
    async with shop.working():
        await shop.until(job.id, lambda _: (shop.places.job(job.id) / "launch-tries").read_text() != "1")
        await shop.jobs.cancel(job.id)
        await shop.until_state(job.id, JobState.CANCELLED)
    assert left_over(job.id) == []
    assert not (shop.places.job(job.id) / "out").exists()


async def test_an_adapter_that_cannot_be_registered_stays_in_the_folder(shop: Shop) -> None:
    job = await shop.add(max_steps=3, unregistrable="Its rank is too high.")
    await shop.work()
    done = await shop.jobs.show(job.id)
    assert (done.state, done.outcome) == (JobState.FAILED, Outcome.PARTIAL)
    assert done.error is not None
    assert done.error.message == "Its rank is too high."
    assert shop.weights(job.id) == weights_after(3)


async def test_what_was_cancelled_while_no_worker_ran_is_thrown_away(shop: Shop) -> None:
    job = await shop.add(max_steps=20, gate=shop.gate())
    shop.let("gate", 6)
    async with shop.working():
        await shop.until_step(job.id, 6)
        await shop.jobs.pause(job.id)
        await shop.until_state(job.id, JobState.PAUSED)
    await shop.jobs.cancel(job.id)
    assert (shop.places.job(job.id) / "out").exists()
    await shop.work()
    assert not (shop.places.job(job.id) / "out").exists()
    assert await shop.jobs.checkpoints(job.id) == ()
