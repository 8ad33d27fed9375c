"""A real gateway over the fake engine, and this room's client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.http import open_http
from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import quiet
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora
from training.gatewayclient import Address, Gateway


@dataclass
class World:
    """waits: what the client was told to wait, which here takes no time."""

    running: Running
    engine: FakeVLLM
    gateway: Gateway
    folder: Path
    waits: list[float] = field(default_factory=list)

    async def version(self, name: str, seed: int, *, promote: bool = False) -> str:
        """A registered version of `name`, its weights made of `seed`."""
        made = await self.gateway.register(tiny_lora(self.folder / f"{name}-{seed}", seed), name)
        if promote:
            await self.gateway.promote(name, made)
        return made


@asynccontextmanager
async def world(folder: Path, *, patience_s: float = 60.0) -> AsyncIterator[World]:
    """A gateway that sends no probes, so that the engine sees what the client caused."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with FakeVLLM() as engine, quiet(folder / "data", [engine]) as running, open_http() as http:
        address = Address(running.url, running.admin_url, running.admin_key)
        client = Gateway(http, address, sleep=sleep, patience_s=patience_s)
        yield World(running, engine, client, folder, waits)
        if not running.stop.is_set():
            await client.close()
