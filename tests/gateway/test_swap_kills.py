"""The gateway is killed (-9) at each step of a swap: what the next one finds is whole, and nothing is left over."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.fake_slots import digest
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway import child
from tests.gateway.plane import CHAT, ask
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"
LOAD, UNLOAD, COMPLETIONS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


@dataclass
class Life:
    """One gateway, until it is killed."""

    home: Path
    engine: FakeVLLM
    gateway: child.Child
    admin: httpx.AsyncClient
    caller: httpx.AsyncClient

    def source(self, seed: int) -> Path:
        folder = self.home.parent / f"lora-{seed}"
        return folder if folder.exists() else tiny_lora(folder, seed)

    async def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin.get(f"{ADAPTERS}/a")).json()
        return found

    def seed(self, version: str | None) -> int | None:
        """Of which source the files of a version are."""
        if version is None:
            return None
        found = digest(self.home / "adapters" / f"a@{version}")
        return next(seed for seed in range(1, 5) if digest(self.source(seed)) == found)

    async def register(self, seed: int, promote: bool = False) -> httpx.Response:
        body = {"source": str(self.source(seed)), "name": "a", "promote": promote}
        return await self.admin.post(ADAPTERS, json=body)

    async def promote(self, seed: int) -> httpx.Response:
        versions = [each["version"] for each in (await self.shown())["versions"]]
        version = next(each for each in versions if self.seed(each) == seed)
        return await self.admin.post(f"{ADAPTERS}/a/promote", json={"version": version})

    async def look(self, live: int, previous: int | None, seeds: set[int]) -> None:
        """The registry, the store, the engine and what callers get, all say the same."""
        with closing(sqlite3.connect(self.home / "loragate.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        shown = await self.shown()
        versions = {each["version"] for each in shown["versions"]}
        assert {self.seed(version) for version in versions} == seeds
        assert (self.seed(shown["live"]), self.seed(shown["previous"])) == (live, previous)
        answer = await self.caller.post(CHAT, json=ask(CHAT, "x", model="a"))
        assert answer.status_code == 200, answer.text
        name = f"a@{shown['live']}"
        text = answer.json()["choices"][0]["message"]["content"]
        assert (answer.headers["x-loragate-model"], text) == (name, f"{name}#{digest(self.source(live))}#demo-base: x")
        known = {f"a@{version}" for version in versions}
        await until(lambda: {*os.listdir(self.home / "adapters")} == known)  # no drafts, no files of what is gone
        await until(lambda: self.engine.loaded.keys() <= known)

    async def killed_at(self, step: str, move: Callable[[], Any]) -> None:
        """Begin `move`, and kill the gateway when the engine is asked for `step`, before it has answered."""
        self.engine.requests.clear()
        self.engine.script(Fault.STALL_BEFORE_HEAD, times=None, path=step)
        moving = asyncio.ensure_future(move())
        await until(lambda: any(seen.path == step for seen in self.engine.requests))
        await self.kill()
        await asyncio.gather(moving, return_exceptions=True)
        self.engine.heal()

    async def kill(self) -> None:
        self.gateway.process.kill()
        await self.gateway.process.wait()


@asynccontextmanager
async def life(home: Path, engine: FakeVLLM) -> AsyncIterator[Life]:
    async with child.serving(home, engine) as gateway:
        headers = {"authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
        admin = httpx.AsyncClient(base_url=gateway.admin_url, headers=headers, timeout=30, trust_env=False)
        async with admin, child.caller(gateway) as caller:
            yield Life(home, engine, gateway, admin, caller)


async def test_killed_at_each_step_of_a_swap(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    async with FakeVLLM(shows_weights=True) as engine:
        async with life(home, engine) as now:
            assert (await now.register(1, promote=True)).status_code == 201
            # Files and row are there; it is being loaded.
            await now.killed_at(LOAD, lambda: now.register(2, promote=True))

        async with life(home, engine) as now:
            await now.look(1, None, {1, 2})
            engine.loaded.clear()
            # Loaded; it is being proven.
            await now.killed_at(COMPLETIONS, lambda: now.promote(2))

        async with life(home, engine) as now:
            await now.look(1, None, {1, 2})
            # Loaded and proven; the name is to be moved, and cannot.
            with closing(sqlite3.connect(home / "loragate.db", isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                engine.requests.clear()
                moving = asyncio.ensure_future(now.promote(2))
                await until(lambda: len(engine.requests) > 2)
                await now.kill()
                await asyncio.gather(moving, return_exceptions=True)
                db.execute("ROLLBACK")

        async with life(home, engine) as now:
            await now.look(1, None, {1, 2})
            assert (await now.promote(2)).status_code == 200
            # Moved; what has no part any more is being unloaded.
            await now.killed_at(UNLOAD, lambda: now.register(3, promote=True))

        async with life(home, engine) as now:
            await now.look(3, 2, {1, 2, 3})
            gone = next(v["version"] for v in (await now.shown())["versions"] if now.seed(v["version"]) == 2)
            # The row is gone; engine and files are to follow.
            await now.killed_at(UNLOAD, lambda: now.admin.delete(f"{ADAPTERS}/a", params={"version": gone}))

        async with life(home, engine) as now:
            await now.look(3, None, {1, 3})
