"""/admin/v1/jobs over HTTP: made from a recipe, followed with replay, changed, and shown to operators only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.training_data import Worker, worker
from training.types import JobState, Outcome, Progress

JOBS = "/admin/v1/jobs"
RECIPE: dict[str, Any] = {"name": "customer-service", "data": {"train": "/data/train.jsonl"}}


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


@pytest.fixture
async def acting(room: AdminRoom) -> AsyncIterator[Worker]:
    async with worker(room.home) as opened:
        yield opened


async def made(room: AdminRoom, **more: Any) -> dict[str, Any]:
    answer = await room.root_client.post(JOBS, json={"recipe": RECIPE, **more})
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def test_a_job_is_made_from_a_recipe_shown_and_listed_by_state(room: AdminRoom, acting: Worker) -> None:
    job = await made(room, priority=3)
    assert (job["name"], job["state"], job["priority"], job["owner"], job["wish"]) == (
        "customer-service", "validating", 3, None, None,
    )  # fmt: skip
    assert job["recipe"]["data"]["train"] == [{"file": "/data/train.jsonl", "weight": 1.0, "cap": None}]
    others = [await made(room) for _ in range(2)]
    await acting.take(job["id"], progress=Progress(step=2, steps=9, loss=0.5))
    get = room.root_client.get
    shown = (await get(f"{JOBS}/{job['id']}")).json()
    assert (shown["state"], shown["progress"]["loss"], shown["worker"]) == ("running", 0.5, "w1")
    first = (await get(JOBS, params={"limit": 2})).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == ([others[1]["id"], others[0]["id"]], True)
    rest = (await get(JOBS, params={"after": others[0]["id"]})).json()
    assert [each["id"] for each in rest["data"]] == [job["id"]]
    running = (await get(JOBS, params={"state": ["running", "paused"]})).json()
    assert [each["id"] for each in running["data"]] == [job["id"]]


WRONG: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no recipe": ({}, "recipe", "invalid_value"),
    "an unknown key": ({"recipe": {**RECIPE, "epochs": 3}}, "epochs", "invalid_recipe"),
    "a relative path": ({"recipe": {**RECIPE, "data": {"train": "a.jsonl"}}}, "data.train.0.file", "invalid_value"),
    "what vLLM cannot serve": ({"recipe": {**RECIPE, "method": {"tuning": "dora"}}}, "method.tuning", "not_servable"),
    "a large priority": ({"recipe": RECIPE, "priority": 101}, "priority", "invalid_value"),
    "a name that is none": ({"recipe": {**RECIPE, "name": "a@b"}}, "name", "invalid_recipe"),
}  # fmt: skip


async def test_what_is_no_recipe_is_refused_by_its_key(room: AdminRoom) -> None:
    for name, (body, param, code) in WRONG.items():
        answer = await room.root_client.post(JOBS, json=body)
        assert answer.status_code == 400, (name, answer.text)
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, code), (name, error)
    assert (await room.root_client.get(JOBS)).json()["data"] == []


async def test_jobs_are_changed_and_wishes_shown(room: AdminRoom, acting: Worker) -> None:
    post = room.root_client.post
    job = await made(room)
    path = f"{JOBS}/{job['id']}"
    assert (await post(f"{path}/priority", json={"priority": -5})).json()["priority"] == -5
    assert (await post(f"{path}/pause")).json()["state"] == "paused"
    twice = await post(f"{path}/pause")
    assert (twice.status_code, twice.json()["error"]["code"]) == (409, "conflict")
    assert (await post(f"{path}/resume")).json()["state"] == "validating"
    await acting.take(job["id"], attempts=1)
    asked = (await post(f"{path}/cancel", json={"keep": True})).json()
    assert (asked["state"], asked["wish"]) == ("running", "cancel and keep")
    await acting.change(job["id"], state=JobState.CANCELLED, wish=None, worker=None, outcome=Outcome.PARTIAL)
    assert (await post(f"{path}/cancel")).status_code == 409
    for wrong in ("ftjob-nothing", "..%2f..", "x"):
        refused = await post(f"{JOBS}/{wrong}/cancel")
        assert refused.status_code in (400, 404)
        assert "^" not in refused.json()["error"]["message"]
    assert (await room.root_client.get(f"{JOBS}/ftjob-nothing")).json()["error"]["code"] == "job_not_found"
    assert (await post(f"{path}/priority", json={"priority": 1000})).status_code == 400
    assert (await post(f"{path}/cancel", json={"keep": "yes"})).status_code == 400


async def test_events_go_on_from_where_one_was_and_the_log_from_its_end(room: AdminRoom, acting: Worker) -> None:
    get = room.root_client.get
    job = await made(room)
    path = f"{JOBS}/{job['id']}"
    await acting.tell(job["id"], "Step 1/9: training loss=0.5", kind="metrics", data={"step": 1})
    page = (await get(f"{path}/events", params={"limit": 2})).json()
    assert [each["message"][:7] for each in page["data"]] == ["Created", "Validat"]
    assert page["has_more"]
    rest = (await get(f"{path}/events", params={"after": page["data"][-1]["id"]})).json()
    assert [(each["kind"], each["data"]) for each in rest["data"]] == [("metrics", {"step": 1})]
    await acting.keep(job["id"], 5, train_loss=0.3)
    (checkpoint,) = (await get(f"{path}/checkpoints")).json()["data"]
    assert (checkpoint["step"], checkpoint["metrics"]) == (5, {"train_loss": 0.3})

    missing = await get(f"{path}/log")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    log = room.home / "training" / "jobs" / job["id"] / "run.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"a" * 100 + b"\xff the end")
    whole = (await get(f"{path}/log")).json()
    assert whole["text"].endswith("a\N{REPLACEMENT CHARACTER} the end")
    assert (whole["offset"], whole["next_offset"], whole["size_bytes"]) == (0, 109, 109)
    end = (await get(f"{path}/log", params={"bytes": 3})).json()
    assert (end["text"], end["offset"]) == ("end", 106)
    more = (await get(f"{path}/log", params={"offset": 105, "bytes": 100})).json()
    assert (more["text"], more["next_offset"]) == (" end", 109)
    assert (await get(f"{path}/log", params={"offset": 9999})).json()["text"] == ""


async def read(room: AdminRoom, path: str, last: str | None = None, until: str = "event: end") -> list[str]:
    """The blocks of a stream, until one begins so, or it ends."""
    headers = {"last-event-id": last} if last else {}
    blocks, block = [], ""
    async with room.root_client.stream("GET", path, params={"stream": "true"}, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"]
        async for line in answer.aiter_lines():
            if line:
                block += line + "\n"
                continue
            blocks.append(block)
            if block.startswith(until):
                break
            block = ""
    return blocks


def ids(blocks: list[str]) -> list[str]:
    return [line[4:] for block in blocks for line in block.splitlines() if line.startswith("id: ")]


async def test_a_stream_replays_beats_and_ends_with_the_job(room: AdminRoom, acting: Worker) -> None:
    job = await made(room)
    path = f"{JOBS}/{job['id']}/events"
    first = await read(room, path, until=": heartbeat")
    assert first[0] == "retry: 2000\n"
    seen = ids(first)
    assert len(seen) == 2
    assert "Validating" in first[2]
    # Away; meanwhile something happens. Then back, with the last id that was seen.
    await acting.tell(job["id"], "Step 1/9: training loss=0.5", kind="metrics", data={"step": 1})
    following = asyncio.create_task(read(room, path, seen[-1]))
    await acting.tell(job["id"], "The job has successfully completed")
    await acting.change(job["id"], state=JobState.SUCCEEDED, outcome=Outcome.PROMOTED, finished_at=time.time())
    blocks = await following
    assert "event: metrics" in next(block for block in blocks if block.startswith("id:"))
    assert not set(ids(blocks)) & set(seen)
    assert len(ids(blocks)) == 2
    name, data = blocks[-1].splitlines()
    assert name == "event: end"
    assert json.loads(data[6:])["outcome"] == "promoted"
    # All of it once more, after the end; an id that is none is no id.
    for last in (None, "x", "-1", "9" * 30):
        again = await read(room, path, last)
        assert ids(again) == [*seen, *ids(blocks)], last
        assert again[-1] == blocks[-1]
    missing = await room.root_client.get(f"{JOBS}/ftjob-nothing/events", params={"stream": "true"})
    assert missing.status_code == 404


async def test_only_a_key_with_the_scope_admin_sees_jobs(room: AdminRoom) -> None:
    job = await made(room)
    for token, status in ((None, 401), ((await room.issue("training")).token, 403)):
        async with room.client(token) as client:
            for path in (JOBS, f"{JOBS}/{job['id']}", f"{JOBS}/{job['id']}/events", f"{JOBS}/{job['id']}/log"):
                assert (await client.get(path)).status_code == status
            assert (await client.post(f"{JOBS}/{job['id']}/cancel")).status_code == status


async def test_an_admin_of_some_models_sees_their_jobs_alone(room: AdminRoom) -> None:
    theirs = await made(room)
    boss = await room.issue("admin", models=frozenset({"mine"}))
    async with room.client(boss.token) as client:
        refused = await client.post(JOBS, json={"recipe": RECIPE})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        alone = await client.post(JOBS, json={"recipe": {**RECIPE, "name": "mine", "pause_engine": True}})
        assert (alone.status_code, "the engine answers for all" in alone.text) == (403, True)
        mine = await client.post(JOBS, json={"recipe": {**RECIPE, "name": "mine"}})
        assert mine.status_code == 201
        assert [each["id"] for each in (await client.get(JOBS)).json()["data"]] == [mine.json()["id"]]
        assert (await client.get(f"{JOBS}/{mine.json()['id']}")).status_code == 200
        for path in ("", "/events", "/checkpoints", "/log"):
            refused = await client.get(f"{JOBS}/{theirs['id']}{path}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "job_not_found"), path
        for path in ("/cancel", "/pause", "/resume"):
            assert (await client.post(f"{JOBS}/{theirs['id']}{path}")).status_code == 404, path
    assert (await room.root_client.get(f"{JOBS}/{theirs['id']}")).json()["state"] == "validating"


async def test_a_follower_that_leaves_frees_its_place(room: AdminRoom) -> None:
    job = await made(room)
    following = room.following
    async with room.root_client.stream("GET", f"{JOBS}/{job['id']}/events", params={"stream": "true"}) as answer:
        await anext(answer.aiter_lines())
        async with asyncio.timeout(30):
            while following._followers != 1:
                await asyncio.sleep(0.005)
    async with asyncio.timeout(30):
        while following._followers != 0:
            await asyncio.sleep(0.005)
