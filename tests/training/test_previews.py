"""A checkpoint of a job that has not ended, asked through the engine: whole, never live, and gone with its job."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.errors import Conflict, ServiceError
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora
from tests.training.fake_trainer import Fake
from tests.training.shop import ROOT, Shop
from training import previews as module
from training import store_jobs as store
from training.errors import NotServable
from training.previews import MOST, Preview, Previews
from training.run.checkpoints import INCOMPLETE
from training.types import Job, JobState, Outcome


@dataclass
class World:
    """A gateway and a workshop on one data directory."""

    gateway: Running
    shop: Shop
    engine: FakeVLLM
    caller: httpx.AsyncClient

    @property
    def previews(self) -> Previews:
        return self.gateway.started.gateway.previews

    async def asked(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return await self.caller.post("/v1/chat/completions", json=body)

    async def job(self, steps: int = 5, **fields: Any) -> Job:
        """One with a checkpoint, made without a trainer, that no worker has."""
        made = await self.shop.add(lora=8)
        trained(self.shop.places.output(made.id), steps)
        fields = {"state": JobState.PAUSED, "settled": {}, **fields}
        return await self.shop.db.write(lambda conn: store.change(conn, made.id, **fields))

    async def ended(self, job: Job) -> None:
        fields: dict[str, Any] = {"state": JobState.CANCELLED, "outcome": Outcome.NOTHING}
        await self.shop.db.write(lambda conn: store.change(conn, job.id, **fields))

    async def names(self) -> list[str]:
        return [adapter.name for adapter in (await self.gateway.started.gateway.adapters.list())[0]]

    async def until_loading(self, word: str) -> None:
        """Until the engine has been asked for it: registered, and held at the gate."""
        while not any("load_lora_adapter" in seen.path and word.encode() in seen.body for seen in self.engine.requests):
            await asyncio.sleep(0.005)

    def left(self) -> list[str]:
        """What lies in the store of weights, and what was written down."""
        weights = [path.name for path in (self.gateway.data_dir / "adapters").glob("ftjob-*")]
        root = self.shop.places.previews
        return weights + [str(path.relative_to(root)) for path in root.rglob("*")]


def trained(output: Path, *steps: int, lora: int = 8) -> None:
    """Checkpoints as the trainer writes them."""
    fake = Fake({"output_dir": str(output), "lora": lora})
    output.mkdir(parents=True, exist_ok=True)
    for step in steps:
        fake.step = step
        fake.weights = bytes([step % 251]) * 32
        fake._save(output / f"checkpoint-{step}", final=False)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with FakeVLLM() as engine, running(tmp_path / "data", [engine]) as gateway:
        shop = Shop(tmp_path / "data")
        async with await gateway.http() as caller:
            yield World(gateway, shop, engine, caller)
        await shop.close()


async def test_a_checkpoint_of_a_running_job_answers_until_the_job_ends(world: World) -> None:
    shop = world.shop
    job = await shop.add(max_steps=20, gate=shop.gate(), save_steps=5, save_total_limit=1, lora=8)
    shop.let("gate", 7)
    async with shop.working():
        await shop.until_step(job.id, 7)
        made = await world.previews.serve(job.id)
        assert (made.step, made.name) == (5, f"{job.id}:ckpt-step-5")
        answer = await world.asked(made.model)
        assert (answer.status_code, answer.headers["x-loragate-model"]) == (200, made.model)
        assert (await world.asked(made.name)).status_code == 404  # nothing is live under the name
        listed = (await world.caller.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["demo-base"]
        assert await world.names() == [made.name]
        assert f"The checkpoint of step 5 can be asked as {made.model}" in await shop.said(job.id)
        shop.let("gate", 12)
        await shop.until_step(job.id, 11)
        await shop.until(job.id, lambda _: not (shop.places.output(job.id) / "checkpoint-5").exists())
        assert (await world.asked(made.model)).status_code == 200  # the trainer has deleted its own
        await world.previews.sweep()
        assert await world.previews.list(job.id) == (made,)
        shop.let("gate", 100)
        await shop.until_state(job.id, JobState.SUCCEEDED)
    await world.previews.sweep()
    assert (await world.asked(made.model)).status_code == 404
    assert (await world.names(), world.left(), len(shop.starts(job.id))) == ([], [], 1)


async def test_the_newest_whole_one_or_the_one_that_is_named(world: World) -> None:
    job = await world.job()
    output = world.shop.places.output(job.id)
    trained(output, 10, 15)
    (output / "checkpoint-15" / INCOMPLETE).touch()
    assert (await world.previews.serve(job.id)).step == 10
    assert (await world.previews.serve(job.id, 5)).step == 5
    assert [each.step for each in await world.previews.list(job.id)] == [10, 5]
    for step in (7, 15):
        with pytest.raises(Conflict, match=f"no whole checkpoint of step {step} now. There are those of step 5, 10"):
            await world.previews.serve(job.id, step)
    assert (output / "checkpoint-15").is_dir()  # putting it aside is the worker's


async def test_what_has_no_preview_is_told_why(world: World) -> None:
    job = await world.shop.add()
    with pytest.raises(Conflict, match="no whole checkpoint here"):
        await world.previews.serve(job.id)
    for settled, why in (({"served": "model"}, "a model of its own"), ({"adapter_folder": "pissa_converted"}, "PiSSA")):
        other = await world.job(settled=settled)
        with pytest.raises(NotServable, match=why):
            await world.previews.serve(other.id)
    await world.ended(job)
    with pytest.raises(Conflict, match="is cancelled already"):
        await world.previews.serve(job.id)
    broken = await world.job()
    trained(world.shop.places.output(broken.id), 5, lora=0)
    with pytest.raises(ServiceError):  # no adapter that any engine takes
        await world.previews.serve(broken.id)
    assert (await world.names(), await world.previews.list(broken.id)) == ([], ())


async def test_two_who_ask_at_once_get_the_same(world: World) -> None:
    job = await world.job()
    first, second = await asyncio.gather(world.previews.serve(job.id), world.previews.serve(job.id))
    assert (first.model, await world.names()) == (second.model, [first.name])
    ending = await asyncio.gather(world.previews.end(job.id), world.previews.end(job.id))
    assert sorted(len(each) for each in ending) == [0, 1]
    assert (await world.names(), world.left()) == ([], [])
    assert (await world.shop.jobs.show(job.id)).state is JobState.PAUSED


async def test_another_gateway_ends_it_meanwhile(world: World) -> None:
    """Both of one data directory; the registration of the first stands still."""
    job = await world.job()
    gate = world.engine.gates["ckpt-step-5"] = asyncio.Event()
    serving = asyncio.create_task(world.previews.serve(job.id))
    await world.until_loading("ckpt-step-5")
    adapters = world.gateway.started.gateway.adapters
    theirs = Previews(world.shop.db, adapters, world.shop.places, clock=time.time)
    ending = asyncio.create_task(theirs.end(job.id))
    while await world.names():
        await asyncio.sleep(0.005)
    gate.set()
    assert len(await ending) == 1
    with pytest.raises(Conflict, match="in this moment"):
        await serving
    assert (await world.names(), world.left()) == ([], [])


async def test_a_job_that_ends_while_its_checkpoint_is_registered(world: World) -> None:
    job = await world.job()
    gate = world.engine.gates["ckpt-step-5"] = asyncio.Event()
    serving = asyncio.create_task(world.previews.serve(job.id))
    await world.until_loading("ckpt-step-5")
    await world.ended(job)
    gate.set()
    with pytest.raises(Conflict, match="has ended in this moment"):
        await serving
    await world.previews.sweep()
    assert (await world.names(), world.left()) == ([], [])


async def test_what_a_crash_leaves_is_swept_when_the_job_has_ended(world: World) -> None:
    """A gateway that died before the registration, in it, and behind it; copies that it had begun."""
    before, within = await world.job(), await world.job(6)
    module._write(world.shop.places.previews / before.id, Preview(before.id, 5, "0" * 12, 1.0))
    gate = world.engine.gates["ckpt-step-6"] = asyncio.Event()
    serving = asyncio.create_task(world.previews.serve(within.id))
    await world.until_loading("ckpt-step-6")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    gate.set()
    assert [each.step for each in await world.previews.list(within.id)] == [6]
    (world.shop.places.previews / within.id / ".half").mkdir()
    (world.shop.places.previews / "ftjob-nobody").mkdir()
    await world.previews.sweep()
    assert [each.step for each in await world.previews.list(within.id)] == [6]  # its job has not ended
    await world.ended(before)
    await world.ended(within)
    await world.previews.sweep()
    assert (await world.names(), world.left()) == ([], [])


async def test_a_name_that_is_taken_stays_whose_it_is(world: World, tmp_path: Path) -> None:
    job = await world.job()
    adapters = world.gateway.started.gateway.adapters
    name = f"{job.id}:ckpt-step-5"
    await adapters.register(tiny_lora(tmp_path / "theirs"), name, promote=True)
    with pytest.raises(Conflict, match="none of this job's"):
        await world.previews.serve(job.id)
    assert (await world.names(), await world.previews.list(job.id)) == ([name], ())
    await adapters.remove(name)
    made = await world.previews.serve(job.id)
    await adapters.register(tiny_lora(tmp_path / "later", 2), name, promote=True)
    await world.ended(job)
    await world.previews.sweep()
    there = await adapters.show(name)
    assert made.version not in {each.version for each in there.versions}
    assert there.live is not None


async def test_a_step_that_is_trained_again_to_other_weights(world: World) -> None:
    job = await world.job()
    old = await world.previews.serve(job.id)
    output = world.shop.places.output(job.id)
    fake = Fake({"output_dir": str(output), "lora": 8})
    fake.step = 5
    fake._save(output / "checkpoint-5", final=False)
    new = await world.previews.serve(job.id)
    assert new.version != old.version
    assert await world.previews.list(job.id) == (new,)
    assert (await world.asked(old.model)).status_code == 404
    assert (await world.asked(new.model)).status_code == 200
    assert await world.previews.end(job.id) == (new,)
    assert await world.names() == []


async def test_no_more_than_a_few_of_one_job(world: World) -> None:
    job = await world.job()
    trained(world.shop.places.output(job.id), *range(6, 7 + MOST))
    for step in range(5, 5 + MOST):
        await world.previews.serve(job.id, step)
    with pytest.raises(Conflict, match=r"`loragate jobs chat .* --end` ends that"):
        await world.previews.serve(job.id)
    assert (await world.previews.serve(job.id, 5)).step == 5  # one of them again


async def test_a_preview_that_somebody_put_live_under_its_own_name_goes_too(world: World) -> None:
    job = await world.job()
    made = await world.previews.serve(job.id)
    await world.gateway.started.gateway.adapters.promote(made.name, made.version)
    await world.previews.end(job.id)
    assert await world.names() == []


async def test_who_may_and_what_the_admin_api_answers(world: World) -> None:
    job = await world.job(settled={"chat_template_kwargs": {"enable_thinking": False}})
    path = f"/admin/v1/jobs/{job.id}/previews"
    other = await world.gateway.key("other", scopes=frozenset({"admin"}), models=frozenset({"mine"}))
    trainer = await world.gateway.key("trainer", scopes=frozenset({"training"}))
    async with world.gateway.admin() as http:
        for key, status in ((trainer, 403), (other, 404)):
            headers = {"authorization": f"Bearer {key}"}
            for method in ("POST", "GET", "DELETE"):
                assert (await http.request(method, path, headers=headers)).status_code == status, (key, method)
        made = await http.post(path, json={"step": 5})
        assert made.status_code == 201
        document = made.json()
        assert document["chat_template_kwargs"] == {"enable_thinking": False}
        assert (await http.get(path)).json()["data"] == [document]
        refused = await http.post(path, json={"step": 6})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert (await http.post(path, json={"step": 0})).status_code == 400
        assert (await http.post("/admin/v1/jobs/ftjob-none/previews")).status_code == 404
        bound = await world.gateway.key("bound", models=frozenset({"customer-service"}))
        async with await world.gateway.http(bound) as caller:
            body = {"model": document["model"], "messages": [{"role": "user", "content": "hello"}]}
            assert (await caller.post("/v1/chat/completions", json=body)).status_code == 404
        assert [each["model"] for each in (await http.delete(path)).json()["data"]] == [document["model"]]
    assert (await world.asked(document["model"])).status_code == 404


def test_copies_are_whole_while_a_trainer_writes_and_deletes(tmp_path: Path) -> None:
    """Each is one checkpoint's config and weights, whatever happened while it was made."""
    output, over = tmp_path / "out", threading.Event()

    def train() -> None:
        step = 1
        while not over.is_set():
            step += 1
            trained(output, step)
            trained(output, step)  # a run that went on from before writes into the same files again
            shutil.rmtree(output / f"checkpoint-{step - 1}", ignore_errors=True)

    trained(output, 1)
    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        copied = 0
        for number in range(200):
            target = tmp_path / f"copy-{number}"
            try:
                step = module._copied(output, None, target)
            except Conflict:
                continue
            copied += 1
            assert json.loads((target / "adapter_config.json").read_text())["r"] == 4
            trained(tmp_path / "same", step)
            same = (tmp_path / "same" / f"checkpoint-{step}" / "adapter_model.safetensors").read_bytes()
            assert (target / "adapter_model.safetensors").read_bytes() == same
    finally:
        over.set()
        trainer.join()
    assert copied


async def loragate(world: World, *argv: str) -> tuple[int, str, str]:
    """The command, as a process that finds the gateway by its data directory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *argv, "--data-dir", str(world.gateway.data_dir)),
        cwd=ROOT,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


async def test_the_command_prints_how_to_ask_asks_and_ends(world: World) -> None:
    job = await world.job(settled={"chat_template_kwargs": {"enable_thinking": False}})
    code, out, err = await loragate(world, "jobs", "chat", job.id)
    assert code == 0, err
    made = (await world.previews.list(job.id))[0]
    assert f"Step 5 of {job.id} answers as {made.model}\n" in out
    if shutil.which("curl"):
        shell = {**os.environ, "LORAGATE_KEY": await world.gateway.key()}
        line = out[out.index("curl") :].rstrip() + " -s"
        asking = await asyncio.create_subprocess_shell(line, env=shell, stdout=asyncio.subprocess.PIPE)
        answer = json.loads((await asking.communicate())[0])
        assert answer["model"] == made.model
        asked = json.loads(next(seen for seen in reversed(world.engine.requests) if "chat" in seen.path).body)
        assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    code, out, err = await loragate(world, "jobs", "chat", job.id, "--step", "5", "--say", "Where is my parcel?")
    assert (code, bool(out.strip()), err) == (0, True, f"Step 5 of {job.id}, {made.model}:\n")
    code, out, _ = await loragate(world, "jobs", "chat", job.id, "--say", "hello", "--json")
    document = json.loads(out)
    assert (document["preview"]["step"], document["answer"]["model"]) == (5, made.model)
    code, out, _ = await loragate(world, "jobs", "chat", job.id, "--end", "--step", "5")
    assert code == 2
    code, out, _ = await loragate(world, "jobs", "chat", job.id, "--end")
    assert (code, out) == (0, f"{made.model} answers no more.\n")
    code, out, err = await loragate(world, "jobs", "chat", "ftjob-none")
    assert (code, out, "There is no job ftjob-none" in err) == (1, "", True)
