"""How a run may end without anybody asking: what is success, what failed and why, what is tried again."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.training.fake_steps import weights_after
from tests.training.shop import Shop
from training.types import Job, JobState, Outcome


async def ended(shop: Shop, **fake: Any) -> Job:
    job = await shop.add(**fake)
    await shop.work()
    return await shop.jobs.show(job.id)


async def test_exit_code_0_before_the_last_step_is_a_failure_that_keeps_what_there_is(shop: Shop) -> None:
    done = await ended(shop, max_steps=20, ends_early_at=8)
    assert (done.state, done.outcome, done.attempts) == (JobState.FAILED, Outcome.PARTIAL, 1)
    assert done.error is not None
    assert (done.error.code, done.error.message) == (
        "stopped_early",
        "Training stopped at step 8 of 20, and nobody here asked for it. What was trained is kept.",
    )
    assert shop.weights(done.id) == weights_after(8)


async def test_a_trainer_that_something_else_told_to_end_goes_on_from_what_it_saved(shop: Shop) -> None:
    """A machine that is shut down, for one: the trainer saves, and ends as one that is done."""
    jit = {"llamafactory": {"enable_jit_checkpoint": True}}
    job = await shop.add(max_steps=20, gate=shop.gate(), jit=True, save_steps=100, settled=jit)
    shop.let("gate", 7)
    async with shop.working():
        await shop.until_step(job.id, 7)
        os.kill(shop.starts(job.id)[0], signal.SIGTERM)
        await shop.until(job.id, lambda job: job.attempts == 2)
        shop.let("gate", 100)
        done = await shop.until_state(job.id, JobState.SUCCEEDED, JobState.FAILED)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert shop.weights(job.id) == weights_after(20)
    assert "Training goes on from step 8, on the processor" in await shop.said(job.id)


async def test_early_stopping_that_the_recipe_asked_for_is_success(shop: Shop) -> None:
    done = await ended(shop, max_steps=20, ends_early_at=8, settled={"llamafactory": {"early_stopping_steps": 3}})
    assert done.state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("raises", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "out_of_gpu_memory"),
        ("RuntimeError: Cannot find valid samples, check `data/README.md`", "no_valid_rows"),
        ("SomethingError: never heard of", "trainer_failed"),
    ],
)
async def test_what_the_log_explains_is_not_tried_again(shop: Shop, raises: str, code: str) -> None:
    done = await ended(shop, raises=raises)
    assert (done.state, done.outcome, done.attempts) == (JobState.FAILED, Outcome.NOTHING, 1)
    assert done.error is not None
    assert done.error.code == code
    [last] = [event for event in await shop.events(done.id) if event.level == "error"]
    assert last.message == done.error.message


async def test_killed_while_the_final_adapter_is_about_to_be_written(shop: Shop) -> None:
    done = await ended(shop, max_steps=20, save_steps=5, dies_at_end=True)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)
    assert shop.weights(done.id) == weights_after(20)


async def test_a_program_that_is_not_there(shop: Shop) -> None:
    done = await ended(shop, program="/nowhere/python")
    assert done.error is not None
    assert (done.state, done.error.code) == (JobState.FAILED, "cannot_start")
    assert "/nowhere/python cannot be started: No such file or directory" in done.error.message


async def test_no_training_environment(shop: Shop) -> None:
    done = await ended(shop, unlaunchable=True)
    assert done.error is not None
    assert done.error.message == "There is no training environment. `loragate doctor` says more."


async def test_all_steps_and_no_adapter(shop: Shop) -> None:
    done = await ended(shop, max_steps=5, no_adapter=True)
    assert done.error is not None
    assert (done.state, done.error.code) == (JobState.FAILED, "no_adapter")
    assert done.error.message.startswith("The trainer did all its steps, but adapter_model.safetensors is missing.")


async def test_no_room_on_the_disk(shop: Shop) -> None:
    done = await ended(shop, settled={"disk_gb": 1e9})
    assert done.error is not None
    assert (done.state, done.error.code, done.attempts) == (JobState.FAILED, "disk_full", 0)


async def test_findings_are_told_while_it_runs_and_once(shop: Shop) -> None:
    job = await shop.add(max_steps=40, flat=True, dies_at=[30])
    await shop.work()
    told = [event for event in await shop.events(job.id) if event.data is not None and "finding" in event.data]
    assert [(event.level, dict(event.data or {})) for event in told] == [("warn", {"finding": "nothing learned"})]


async def test_nan_is_told_and_is_nowhere_in_the_figures(shop: Shop) -> None:
    job = await shop.add(max_steps=10, nan_from=5)
    await shop.work()
    said = await shop.said(job.id)
    assert any(line.startswith("The loss is not a number any more since step 5") for line in said)
    assert all("train_loss" not in line for line in await shop.figures(job.id) if line["step"] >= 5)


async def test_overfitting_is_told(shop: Shop) -> None:
    job = await shop.add(max_steps=40, eval_steps=5, overfits=True)
    await shop.work()
    assert any("by heart" in line for line in await shop.said(job.id))


async def test_fewer_steps_than_planned_are_said(shop: Shop) -> None:
    job = await shop.add(max_steps=10, planned=20)
    await shop.work()
    assert "LLaMA-Factory did 10 steps, 20 were planned." in await shop.said(job.id)
