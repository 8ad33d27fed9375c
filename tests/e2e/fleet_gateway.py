"""A real gateway process over the fleet's engines, and its admin API as an operator's script uses it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests import ports
from tests.e2e.fleet_engine import Replica

ROOT = Path(__file__).resolve().parents[2]
READY_S = 120


class Refused(Exception):
    """What the admin API said instead of doing it."""


@dataclass
class Gateway:
    """`admin` carries the admin key, `key` is one for inference."""

    process: asyncio.subprocess.Process
    url: str
    admin: httpx.AsyncClient
    directory: Path
    key: str = ""

    async def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One call of the admin API; Refused with its words."""
        answer = await self.admin.request(method, f"/admin/v1/{path}", json=body or None)
        if answer.status_code >= 300:
            raise Refused(f"{method} {path}: {answer.status_code} {answer.text}")
        found = answer.json()
        assert isinstance(found, dict)
        return found

    async def register(self, folder: Path, name: str, *, promote: bool) -> str:
        """The version's 12 hex digits."""
        before = {each["version"] for each in await self._versions(name)}
        made = await self.ask("POST", "adapters", source=str(folder), name=name, promote=promote)
        return next(str(each["version"]) for each in made["versions"] if each["version"] not in before)

    async def _versions(self, name: str) -> list[dict[str, Any]]:
        answer = await self.admin.get(f"/admin/v1/adapters/{name}")
        return list(answer.json()["versions"]) if answer.status_code == 200 else []

    async def is_ready(self, replica: Replica) -> bool:
        """Whether this engine gets requests."""
        replicas = (await self.admin.get("/readyz")).json()["replicas"]
        return any(each["url"] == replica.url and each["state"] == "ready" for each in replicas)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        text = (await self.admin.get("/metrics")).text
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


@asynccontextmanager
async def gateway(engines: Sequence[Replica], directory: Path) -> AsyncIterator[Gateway]:
    """`loragate serve`, ready, with an inference key; what it prints is in `<directory>/printed`. Ends with SIGTERM."""
    os.makedirs(directory)
    listed = [{"url": engine.url, "api_key": engine.key, "max_loras": engine.slots} for engine in engines]
    config = directory / "gateway.yaml"  # JSON is YAML
    config.write_text(json.dumps({"engines": listed}), encoding="utf-8")
    own = [ports.unused(), ports.unused()]
    argv = ["serve", "--config", str(config), "--data-dir", str(directory / "data")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    with (directory / "printed").open("ab") as printed:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *argv, "--port", str(own[0]), "--admin-port", str(own[1])),
            cwd=directory,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdout=printed,
            stderr=printed,
        )
    admin = f"http://127.0.0.1:{own[1]}"
    try:
        # Its server closes what is idle for 5 s, as long as this client would keep it: a command could meet that.
        limits = httpx.Limits(keepalive_expiry=2)
        async with httpx.AsyncClient(base_url=admin, trust_env=False, timeout=100, limits=limits) as http:
            made = Gateway(process, f"http://127.0.0.1:{own[0]}/v1", http, directory)
            await _until_ready(made)
            key = (directory / "data" / "admin.key").read_text(encoding="utf-8").strip()
            http.headers["authorization"] = f"Bearer {key}"
            made.key = (await made.ask("POST", "keys", name="fleet"))["key"]
            yield made
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_ready(made: Gateway) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            assert made.process.returncode is None, (made.directory / "printed").read_text()
            with contextlib.suppress(httpx.TransportError):
                if (await made.admin.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.1)
