"""The engine of this machine, stopped for a training run: a real child process, the real gateway before it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from adapters.errors import Unavailable
from gateway.local.places import Places
from gateway.local.supervisor import State, Supervisor
from gateway.pausing import REASON, Pauses
from tests.gateway.running import Running, running
from tests.local.conftest import QUICK, fake_launch, supervise, until
from tests.local.test_supervisor import gone, stop
from training.errors import GatewayAway
from training.gatewayclient import Address
from training.pipeline import Pipeline, Surroundings
from training.places import Places as TrainingPlaces
from training.run import process
from training.types import Job, JobState

PAUSE, RESUME = "/admin/v1/engine/pause", "/admin/v1/engine/resume"


@dataclass
class World:
    gateway: Running
    supervisor: Supervisor
    admin: httpx.AsyncClient
    caller: httpx.AsyncClient

    @property
    def pid(self) -> int:
        pid = self.supervisor.status.pid
        assert pid is not None
        return pid

    async def pause(self, job: str = "ftjob-one", seconds: float = 60.0) -> httpx.Response:
        return await self.admin.post(PAUSE, json={"job": job, "seconds": seconds})

    async def resume(self, job: str = "ftjob-one") -> httpx.Response:
        return await self.admin.post(RESUME, json={"job": job})

    async def asked(self, **more: Any) -> httpx.Response:
        body = {"model": "demo-base", "messages": [{"role": "user", "content": "hello"}], **more}
        return await self.caller.post("/v1/chat/completions", json=body)


@pytest.fixture
async def world(places: Places) -> AsyncIterator[World]:
    launch = fake_launch(places)
    supervisor = supervise(places, launch)
    task = asyncio.create_task(supervisor.run())
    engine = {"url": launch.url, "api_key": launch.api_key}
    async with (
        running(places.data, [launch.url], local_engine=supervisor, engines=[engine]) as gateway,
        gateway.admin() as admin,
        await gateway.http() as caller,
    ):
        yield World(gateway, supervisor, admin, caller)
    await stop(task)


async def test_it_ends_callers_are_told_and_it_comes_back(world: World) -> None:
    assert (await world.asked()).status_code == 200
    first = world.pid
    paused = await world.pause()
    assert (paused.status_code, paused.json()) == (200, {"paused": True, "jobs": ["ftjob-one"]})
    assert gone(first)
    assert world.supervisor.status.state is State.PAUSED
    refused = await world.asked()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    assert refused.headers["retry-after"] == "60"
    assert REASON in refused.json()["error"]["message"]
    assert "ftjob" not in refused.text
    ready = await world.admin.get("/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (503, [REASON])
    assert (await world.caller.get("/v1/models")).json()["data"][0]["id"] == "demo-base"
    nobody = httpx.AsyncClient(base_url=world.gateway.url, trust_env=False)
    async with nobody:
        assert (await nobody.post("/v1/chat/completions", json={})).status_code == 401
    assert (await world.resume()).json() == {"paused": False, "jobs": []}
    await world.gateway.until_ready()
    assert (await world.asked()).status_code == 200
    assert world.pid != first
    assert world.supervisor.status.restarts == 0  # nobody counts it as a fault


async def test_who_is_not_heard_of_any_more_holds_it_no_longer(world: World) -> None:
    await world.pause(seconds=60)
    await world.pause(seconds=1)
    await world.gateway.until_ready()
    assert (await world.asked()).status_code == 200
    assert (await world.resume()).json()["paused"] is False


async def test_it_stays_away_until_the_last_run_has_ended(world: World) -> None:
    await asyncio.gather(world.pause("ftjob-one"), world.pause("ftjob-two"), world.pause("ftjob-two"))
    assert (await world.resume("ftjob-one")).json() == {"paused": True, "jobs": ["ftjob-two"]}
    assert (await world.resume("ftjob-none")).json()["paused"] is True
    assert world.supervisor.status.state is State.PAUSED
    await world.resume("ftjob-two")
    await world.gateway.until_ready()


async def test_answers_on_their_way_come_to_their_end_first(world: World) -> None:
    stream = {"stream": True, "max_tokens": 400, "model": "demo-base"}
    body = {**stream, "messages": [{"role": "user", "content": "long"}]}
    first = world.pid
    proxy = world.gateway.started.gateway.proxy
    proxy.admission.in_flight += 1  # one that does not end before we say so
    async with world.caller.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        pausing = asyncio.create_task(world.pause())
        await until(lambda: bool(proxy.paused))
        assert (await world.asked()).status_code == 503
        assert not gone(first)
        assert [line async for line in lines if line][-1] == "data: [DONE]"
    assert not pausing.done()
    proxy.admission.in_flight -= 1
    assert (await pausing).status_code == 200
    assert gone(first)


async def test_resumed_before_it_had_ended(world: World) -> None:
    proxy = world.gateway.started.gateway.proxy
    proxy.admission.in_flight += 1
    pausing = asyncio.create_task(world.pause())
    await until(lambda: bool(proxy.paused))
    first = world.pid
    await world.resume()
    assert (await pausing).status_code == 503
    again = asyncio.create_task(world.pause())
    await until(lambda: bool(proxy.paused))
    proxy.admission.in_flight -= 1
    assert (await again).status_code == 200
    assert gone(first)
    await world.resume()
    await world.gateway.until_ready()


async def test_resumed_and_paused_again_while_it_ends(places: Places) -> None:
    """An engine that takes its time to end: whoever asked last is answered when it has."""
    supervisor = supervise(places, fake_launch(places))
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    pid = supervisor.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it hears no SIGTERM
    pauses = Pauses(supervisor, time.monotonic, refuse=lambda why: None, in_flight=lambda: 0)
    async with pauses:
        first = asyncio.create_task(pauses.pause("ftjob-one", 60))
        await until(lambda: supervisor._held != "")
        pauses.resume("ftjob-one")
        second = asyncio.create_task(pauses.pause("ftjob-two", 60))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        await second
        assert supervisor.states()[0]["state"] == "paused"
        assert gone(pid)
        with pytest.raises(Unavailable):
            await first
    await stop(task)


async def test_a_gateway_that_was_killed_does_not_start_an_engine_into_a_full_gpu(places: Places) -> None:
    trainer = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    for name, pid, alone in (
        ("ftjob-one", trainer.pid, True),
        ("ftjob-two", trainer.pid, False),
        ("ftjob-no", 1, True),
    ):
        folder = TrainingPlaces(places.data).job(name)
        folder.mkdir(parents=True)
        started = process.start_time(trainer.pid)
        process.write(folder, process.Attempt(pid, started, process.boot(), "0", alone=alone))
    launch = fake_launch(places)
    supervisor = supervise(places, launch)
    task = asyncio.create_task(supervisor.run())
    engine = {"url": launch.url, "api_key": launch.api_key}
    try:
        async with (
            running(places.data, [launch.url], ready=False, local_engine=supervisor, engines=[engine]) as gateway,
            gateway.admin() as admin,
        ):
            paused = await admin.post(PAUSE, json={"job": "ftjob-one", "seconds": 60})  # the worker that finds it
            assert paused.json() == {"paused": True, "jobs": ["ftjob-one"]}
            assert supervisor.status.state is State.PAUSED
            assert (await admin.get("/readyz")).json()["reasons"] == [REASON]
            await admin.post(RESUME, json={"job": "ftjob-one"})
            await gateway.until_ready()
    finally:
        trainer.kill()
        await trainer.wait()
        await stop(task)


async def test_who_may_not(world: World) -> None:
    some = await world.gateway.key("some", scopes=frozenset({"admin"}), models=frozenset({"mine"}))
    for key in (some, await world.gateway.key()):
        headers = {"authorization": f"Bearer {key}"}
        for path, body in ((PAUSE, {"job": "ftjob-one", "seconds": 5}), (RESUME, {"job": "ftjob-one"})):
            assert (await world.admin.post(path, json=body, headers=headers)).status_code == 403
    assert (await world.admin.post(PAUSE, json={"job": "ftjob-one", "seconds": 1e9})).status_code == 400
    assert world.supervisor.status.state is State.READY


async def test_a_gateway_that_started_no_engine_can_stop_none(places: Places) -> None:
    async with running(places.data, []) as gateway, gateway.admin() as admin:
        refused = await admin.post(PAUSE, json={"job": "ftjob-one", "seconds": 5})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "`loragate up`" in refused.json()["error"]["message"]
        assert (await admin.post(RESUME, json={"job": "ftjob-one"})).json()["paused"] is False


async def test_a_worker_has_it_stopped_where_the_recipe_agrees_and_waits_for_it_afterwards(world: World) -> None:
    """What a worker does for a job, against the real gateway."""
    steps = pipeline(world)
    recipe: dict[str, Any] = {"name": "customer-service", "data": {"train": "/rows.jsonl"}}
    assert await steps.borrow(job(recipe), 60.0) is False
    assert world.supervisor.status.state is State.READY
    agreed = job({**recipe, "pause_engine": True})
    assert await steps.paused(agreed) is False
    assert await steps.borrow(agreed, 60.0) is True
    assert world.supervisor.states()[0]["state"] == "paused"
    assert await steps.paused(agreed) is True
    with pytest.raises(GatewayAway, match="is not running now"):
        await steps.paused(job(recipe))
    with pytest.raises(GatewayAway, match="not ready again yet"):
        await steps.back(agreed)
    await steps.give_back(agreed)
    with pytest.raises(GatewayAway, match="is not running now"):  # it comes back
        await steps.paused(agreed)
    await world.gateway.until_ready()
    await steps.back(agreed)
    assert await steps.paused(job(recipe)) is False
    elsewhere = pipeline(world, admin_url="http://gateway.example:8001")  # its engine is not on this machine
    assert (await elsewhere.paused(agreed), await elsewhere.borrow(agreed, 60.0)) == (False, False)


def pipeline(world: World, admin_url: str | None = None) -> Pipeline:
    def never(*_: object) -> Any:
        raise AssertionError("not asked here")

    gateway = world.gateway
    address = Address(gateway.url, admin_url or gateway.admin_url, gateway.admin_key)
    places = TrainingPlaces(gateway.data_dir)
    return Pipeline(Surroundings(places, lambda: address, never, never, never, never, never))


def job(recipe: dict[str, Any]) -> Job:
    return Job("ftjob-one", None, "customer-service", JobState.RUNNING, recipe, 1.0)


async def test_held_while_it_waits_to_be_started_again(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places), replace(QUICK, backoff_s=(600.0,)))
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    assert supervisor.status.pid is not None
    os.kill(supervisor.status.pid, signal.SIGKILL)
    await until(lambda: supervisor.status.state is State.RESTARTING)
    supervisor.hold("for a test")
    await supervisor.held()
    assert (supervisor.status.state, supervisor.states()[0]["reason"]) == (State.PAUSED, "for a test")
    assert not places.engine_pid.exists()
    supervisor.release()
    await until(lambda: supervisor.status.state is State.READY)
    await stop(task)
    supervisor.hold("when all is over")
    await supervisor.held()


async def test_held_before_it_was_ever_ready_is_no_refusal(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places, "--start-delay", "600"))
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.status.pid is not None)
    pid = supervisor.status.pid
    supervisor.hold("for a test")
    await supervisor.held()
    assert pid is not None
    assert gone(pid)
    assert supervisor.states()[0]["state"] == "paused"
    await stop(task)
    assert supervisor.states()[0]["state"] == "stopped"
