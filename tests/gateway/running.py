"""A whole gateway in the test's own loop: real sockets, real SQLite, real servers; the fake engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from gateway.discovery import Resolve, getaddrinfo
from gateway.keys import Grant
from gateway.server import Started, serve
from gateway.settings import load
from gateway.v1.snapshot import Limits
from tests import databases
from tests.fake_vllm import FakeVLLM

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI


@dataclass
class Running:
    started: Started
    data_dir: Path
    stop: asyncio.Event
    serving: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.started.public_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.started.admin_port}"

    @property
    def admin_key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    async def key(self, name: str = "test", **grant: Any) -> str:
        """A new inference key; grant: models, expires_at, scopes, and limits (rpm, tpm, concurrency, daily_tokens)."""
        limits = Limits(**{k: grant.pop(k) for k in ("rpm", "tpm", "concurrency", "daily_tokens") if k in grant})
        grant.setdefault("scopes", frozenset({"inference"}))
        keys = self.started.gateway.keys
        return (await keys.create(Grant(name=name, limits=limits, **grant), keys.root)).token

    async def openai(self, key: str | None = None, **options: Any) -> AsyncOpenAI:
        """The official client; no retries unless asked, so that a test counts what it sends."""
        from openai import AsyncOpenAI  # 0.5 s of a process that may have no test of it; anthropic twice that

        options.setdefault("max_retries", 0)
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or await self.key(), **options)

    async def anthropic(self, key: str | None = None, **options: Any) -> AsyncAnthropic:
        from anthropic import AsyncAnthropic

        options.setdefault("max_retries", 0)
        return AsyncAnthropic(base_url=self.url, api_key=key or await self.key(), **options)

    async def http(self, key: str | None = None) -> httpx.AsyncClient:
        """Plain HTTP with the key, for what the SDKs hide. Nothing here is TLS: reading trust roots takes 15 ms."""
        headers = {"authorization": f"Bearer {key or await self.key()}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=False)

    def admin(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.admin_key}"}
        return httpx.AsyncClient(base_url=self.admin_url, headers=headers, timeout=30, trust_env=False, verify=False)

    async def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics, 0 where it is not there (yet)."""
        async with self.admin() as http:
            page = (await http.get("/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        for line in page.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(w in series for w in wanted):
                return float(value)
        return 0.0

    async def until_ready(self) -> None:
        """Until /readyz says that a request would succeed."""
        health = self.started.gateway.health
        async with asyncio.timeout(30):
            while not health.ready()[0]:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(
    data_dir: Path,
    engines: Sequence[FakeVLLM | str],
    /,
    *,
    ready: bool = True,
    resolve: Resolve = getaddrinfo,
    local_engine: Any = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """A gateway over `engines`; settings: sections as in configs/gateway.yaml. Drained at the end.

    resolve: how the names of engines are looked up. local_engine: a Supervisor, whose engine it may have stopped.

    A new SQLite file comes with its tables: to make them takes as long as the rest of the start.
    """
    urls = [engine if isinstance(engine, str) else engine.url for engine in engines]
    flags: dict[str, Any] = {
        "data_dir": str(data_dir),
        "public": {"port": 0},
        "admin": {"port": 0},
        "engines": [{"url": url} for url in urls],
        "health": {"probe_interval_s": 0.05},
        "drain": {"timeout_s": 5},
    }
    for section, values in settings.items():
        flags[section] = {**flags.get(section, {}), **values} if isinstance(values, dict) else values
    if "database_url" not in settings and not (data_dir / "loragate.db").exists():
        databases.sqlite(data_dir / "loragate.db")
    stop, up = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def on_started(started: Started) -> None:
        up.set_result(started)

    serving = asyncio.create_task(
        serve(
            load({}, flags=flags),
            local_engine=local_engine,
            resolve=resolve,
            on_started=on_started,
            stop=stop,
        )
    )
    await asyncio.wait((serving, up), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    gateway = Running(await up, data_dir, stop, serving)
    try:
        if ready and engines:
            await gateway.until_ready()
        yield gateway
    finally:
        stop.set()
        await serving
