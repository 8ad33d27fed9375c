"""The registry under a whole gateway: what happens to requests, engines and the disk when adapters come and go."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from adapters.db import Database
from gateway import store
from gateway.refresh import Refresher
from gateway.settings import load
from gateway.store import ApiKey, Grant
from gateway.v1.snapshot import Snapshot
from tests import databases
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import CHAT, ask
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"


async def _registered(gateway: Running, folder: Path, name: str = "support", **body: object) -> str:
    """Register `folder`; the engine's name of its version."""
    async with gateway.admin() as http:
        made = await http.post(ADAPTERS, json={"source": str(folder), "name": name, **body})
    assert made.status_code == 201, made.text
    return f"{name}@{made.json()['versions'][0]['version']}"


async def _until(gateway: Running, wanted: str) -> None:
    """Until /readyz gives a reason with these words; "" for none."""
    async with asyncio.timeout(30):
        while True:
            reasons = " ".join(gateway.started.gateway.health.ready()[1]["reasons"])
            if wanted in reasons and bool(wanted) == bool(reasons):
                return
            await asyncio.sleep(0.01)


@contextmanager
def _by_hand(data_dir: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(data_dir / "loragate.db", isolation_level=None)) as db:
        yield db
        db.execute("UPDATE revision SET n = n + 1")


async def test_a_row_spoilt_by_hand_is_said_and_its_mending_is_seen(tmp_path: Path) -> None:
    async with FakeVLLM() as engine, running(tmp_path, [engine]) as gateway, await gateway.http() as http:
        with _by_hand(tmp_path) as db:
            db.execute("UPDATE api_keys SET models = 'nonsense'")
        await _until(gateway, "the registry cannot be read: a row in it")
        assert (await http.get("/v1/models")).status_code == 200
        with _by_hand(tmp_path) as db:
            db.execute("UPDATE api_keys SET models = NULL, revoked_at = 1")
        await _until(gateway, "")
        assert (await http.get("/v1/models")).status_code == 401


async def test_weights_stay_on_disk_until_the_requests_of_before_are_over(tmp_path: Path) -> None:
    """vLLM dies of a request in its queue whose adapter it has to read again and cannot (tried with 0.32.0)."""
    async with FakeVLLM() as engine, running(tmp_path / "data", [engine]) as gateway:
        name = await _registered(gateway, tiny_lora(tmp_path / "lora"), promote=True)
        folder = tmp_path / "data" / "adapters" / name
        engine.script(Fault.STALL_BEFORE_HEAD, path=CHAT)
        async with await gateway.http() as http, gateway.admin() as admin:
            waiting = asyncio.create_task(http.post(CHAT, json=ask(CHAT, model="support")))
            await engine.working(1)
            assert (await admin.delete(f"{ADAPTERS}/support")).status_code == 200
            assert (await http.post(CHAT, json=ask(CHAT, model="support"))).status_code == 404
            assert name in engine.loaded  # unloaded under a request and loaded again, it would end the engine (tried)
            assert folder.is_dir()
            await engine.restart()
            with_an_error: httpx.Response = await waiting
            assert with_an_error.status_code >= 500
            async with asyncio.timeout(30):
                while list(folder.parent.iterdir()):
                    await asyncio.sleep(0.01)


async def test_an_engine_that_cannot_load_does_not_stand_in_the_way_of_one_that_can(tmp_path: Path) -> None:
    async with FakeVLLM() as bad, FakeVLLM() as good, running(tmp_path / "data", [bad, good]) as gateway:
        bad.script(Fault.STATUS, times=None, path="/v1/load_lora_adapter")
        name = await _registered(gateway, tiny_lora(tmp_path / "lora"))
        good.loaded.clear()  # as after a restart: nobody loads again by himself what is not live
        async with await gateway.http() as http:
            for _ in range(4):
                answer = await http.post(CHAT, json=ask(CHAT, model=name))
                assert (answer.status_code, answer.headers["x-loragate-model"]) == (200, name)
        assert list(good.loaded) == [name]


async def test_keys_that_expired_by_a_wrong_clock_are_back_when_it_is_right(tmp_path: Path) -> None:
    clock = [1_800_000_000.0]
    seen: list[Snapshot] = []
    db = Database.open(databases.sqlite(tmp_path / "loragate.db"))
    key = ApiKey("k" * 12, Grant("x", frozenset({"inference"}), expires_at=clock[0] + 60), bytes(32), clock[0])
    await db.write(lambda conn: store.add_key(conn, key))
    settings = load({}, flags={"data_dir": str(tmp_path)})
    clock[0] += 3600
    async with Refresher(
        db,
        settings,
        swap=seen.append,
        base=lambda: None,
        wall=lambda: clock[0],
        clock=lambda: 0.0,
        fresh=lambda _: None,
    ) as refresher:
        assert not seen[-1].keys
        clock[0] -= 3600
        await refresher.refresh()
        assert list(seen[-1].keys) == [key.id]
        await refresher.refresh()
        assert len(seen) == 2  # nothing new: not read again
    db.close()


async def test_what_only_a_killed_engine_held_is_loaded_on_another(tmp_path: Path) -> None:
    """Each of two engines has one slot; the request that finds its engine gone is answered by the other."""
    async with (
        FakeVLLM(max_loras=1) as one,
        FakeVLLM(max_loras=1) as two,
        running(tmp_path / "data", [one, two], health={"probe_interval_s": 3600}) as gateway,
    ):
        names = [
            await _registered(gateway, tiny_lora(tmp_path / n, seed=s), n, promote=True) for s, n in enumerate("ab")
        ]
        async with await gateway.http() as http:
            for name in ("a", "b"):
                assert (await http.post(CHAT, json=ask(CHAT, model=name))).status_code == 200
            fleet = gateway.started.gateway.proxy.fleet
            gone = next(replica for replica in fleet.replicas if names[0] in replica.resident)
            await (one if one.url == gone.url else two).stop()
            answer = await http.post(CHAT, json=ask(CHAT, model="a"))
            assert (answer.status_code, answer.headers["x-loragate-model"]) == (200, names[0])
