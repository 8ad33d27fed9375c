"""`loragate jobs` as a child process against a real admin port: tables, watching to the end, the trainer's log."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli.jobs import line, span
from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.test_admin_jobs import made
from tests.gateway.test_cli_live import ROOT, loragate
from tests.gateway.training_data import Worker, worker
from training.types import JobState, Outcome, Phase, Problem, Progress


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


@pytest.fixture
async def acting(room: AdminRoom) -> AsyncIterator[Worker]:
    async with worker(room.home) as opened:
        yield opened


FIGURES = Progress(step=120, steps=640, loss=0.43214, learning_rate=1e-4, tokens_per_s=3210.4, eta_s=130.0)
RESULT = {"model": "customer-service@0123456789ab", "public_name": "customer-service", "verdict": "Better by 12 %."}


async def test_jobs_are_listed_shown_and_changed(room: AdminRoom, acting: Worker) -> None:
    nothing = await loragate(room, "jobs", "list")
    assert (nothing.code, nothing.stdout, nothing.stderr) == (0, "", "Nothing yet.\n")
    job = await made(room)
    await acting.take(job["id"], phase=Phase.TRAINING, progress=FIGURES)
    listed = await loragate(room, "jobs", "list", "--state", "running", "--state", "queued")
    for said in (job["id"], "running (training)", "120/640", "0.4321", "2 min 10 s", "operator"):
        assert said in listed.stdout, listed.stdout
    assert (await loragate(room, "jobs", "list", "--state", "failed", "--json")).document()["data"] == []
    shown = await loragate(room, "jobs", "show", job["id"])
    assert "step 120/640, 19 %, loss 0.4321, learning rate 1.00e-04, 3,210 tokens/s, 2 min 10 s left" in shown.stdout
    cancelled = await loragate(room, "jobs", "cancel", job["id"], "--keep")
    assert cancelled.stdout == f"{job['id']} is running (training), asked to cancel and keep.\n"
    other = await made(room)
    for verb, state in (("pause", "paused"), ("resume", "validating")):
        assert (await loragate(room, "jobs", verb, other["id"])).stdout == f"{other['id']} is {state}.\n"
    moved = await loragate(room, "jobs", "prioritise", other["id"], "7", "--json")
    assert moved.document()["priority"] == 7
    refused = await loragate(room, "jobs", "resume", other["id"], "--json")
    assert (refused.code, refused.document()["error"]["code"]) == (1, "conflict")
    missing = await loragate(room, "jobs", "show", "ftjob-nothing")
    assert (missing.code, missing.stdout) == (1, "")
    assert "There is no job ftjob-nothing" in missing.stderr
    events = await loragate(room, "jobs", "events", other["id"])
    assert "Created fine-tuning job" in events.stdout
    assert "Resumed" in events.stdout
    page = (await loragate(room, "jobs", "events", other["id"], "--limit", "1", "--json")).document()
    assert (len(page["data"]), page["has_more"]) == (1, True)


async def test_watching_in_a_pipe_is_plain_lines_to_the_end(room: AdminRoom, acting: Worker) -> None:
    job = await made(room)
    await acting.take(job["id"], phase=Phase.TRAINING, progress=FIGURES)
    watching = asyncio.create_task(loragate(room, "jobs", "watch", job["id"]))
    await acting.tell(job["id"], "The loss \x1b[2Jrises", level="warn")
    await acting.tell(job["id"], "Step 120/640: training loss=0.4", kind="metrics", data={"step": 120})
    await acting.change(
        job["id"], state=JobState.SUCCEEDED, outcome=Outcome.PROMOTED, result=RESULT, finished_at=time.time()
    )
    seen = await watching
    assert seen.code == 0, seen.stderr
    assert "warn: The loss \N{REPLACEMENT CHARACTER}[2Jrises\n" in seen.stdout
    assert "Step 120/640: training loss" not in seen.stdout
    assert "The job is succeeded.\n" in seen.stdout
    assert "Better by 12 %." in seen.stdout
    document = (await loragate(room, "jobs", "watch", job["id"], "--json")).document()
    assert document["outcome"] == "promoted"


async def test_watching_a_job_that_fails_says_why_and_is_no_success(room: AdminRoom, acting: Worker) -> None:
    job = await made(room)
    problem = Problem("out_of_memory", "The GPU's memory is full.", try_this={"training.batch_size": 1})
    await acting.change(job["id"], state=JobState.FAILED, error=problem, finished_at=time.time())
    seen = await loragate(room, "jobs", "watch", job["id"])
    assert seen.code == 1
    assert "The GPU's memory is full." in seen.stderr
    assert "--set training.batch_size=1" in seen.stdout
    as_json = await loragate(room, "jobs", "watch", job["id"], "--json")
    assert (as_json.code, as_json.document()["error"]["code"]) == (1, "out_of_memory")
    other = await made(room)
    await room.root_client.post(f"/admin/v1/jobs/{other['id']}/cancel")
    cancelled = await loragate(room, "jobs", "watch", other["id"])
    assert (cancelled.code, "The job was cancelled." in cancelled.stderr) == (1, True)


async def test_watching_on_a_terminal_is_one_live_line(room: AdminRoom, acting: Worker) -> None:
    job = await made(room)
    await acting.take(job["id"], phase=Phase.TRAINING, progress=FIGURES)
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(room.home), "LORAGATE_ADMIN_URL": room.url, "PYTHONPATH": str(ROOT)}
    env |= {"TERM": "xterm", "COLUMNS": "200"}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "jobs", "watch", job["id"]),
        cwd=room.home, env=env, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = bytearray()
    arrived = asyncio.Event()

    def read() -> None:
        try:
            seen.extend(os.read(ours, 65536))
        except OSError:  # Linux says so when the other end is closed
            asyncio.get_running_loop().remove_reader(ours)
        arrived.set()

    asyncio.get_running_loop().add_reader(ours, read)
    try:
        async with asyncio.timeout(60):
            while b"3,210 tokens/s" not in seen:
                arrived.clear()
                await arrived.wait()
        await acting.change(
            job["id"], state=JobState.SUCCEEDED, outcome=Outcome.PROMOTED, result=RESULT, finished_at=time.time()
        )
        assert await child.wait() == 0
        async with asyncio.timeout(30):
            while b"Better by" not in seen:
                arrived.clear()
                await arrived.wait()
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
    assert b"\x1b[" in seen


async def test_the_trainers_log_is_shown_and_followed(room: AdminRoom, acting: Worker) -> None:
    job = await made(room)
    missing = await loragate(room, "jobs", "log", job["id"])
    assert missing.code == 1
    assert "has no log here" in missing.stderr
    log = room.home / "training" / "jobs" / job["id"] / "run.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"first\n 10%\r 20%\r\x1b[2Jsecond\n")
    shown = await loragate(room, "jobs", "log", job["id"])
    assert shown.stdout == "first\n 10%\n 20%\n[2Jsecond\n"
    assert (await loragate(room, "jobs", "log", job["id"], "--json")).document()["size_bytes"] == log.stat().st_size
    following = asyncio.create_task(loragate(room, "jobs", "log", job["id"], "--follow"))
    with log.open("ab") as file:
        file.write(b"third\n")
    await acting.change(job["id"], state=JobState.CANCELLED, finished_at=time.time())
    seen = await following
    assert (seen.code, seen.stdout.endswith("second\nthird\n")) == (0, True)


def test_spans_and_figures_as_people_say_them() -> None:
    said = {0: "0 s", 59.6: "1 min", 61: "1 min 1 s", 3600: "1 h", 3725: "1 h 2 min", 90_000: "1 d 1 h", None: None}
    assert {given: span(given) for given in said} == said
    assert line({}, True) == ""
    assert line({"step": 3}, True) == "step 3"
    assert (
        line({"step": 3, "steps": 9, "eta_s": 5, "valid_loss": 0.25}, False) == "step 3/9, 33 %, validation loss 0.25"
    )
