"""The gateway as a process of its own: `python -m gateway serve` in front of a fake engine, until it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import ports
from tests.fake_vllm import FakeVLLM

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Child:
    process: asyncio.subprocess.Process
    url: str
    admin_url: str
    port: int
    key: str


@asynccontextmanager
async def serving(home: Path, engine: FakeVLLM, **environ: str) -> AsyncIterator[Child]:
    """`loragate serve` with a key for inference; all that it prints goes to `<home>/printed`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"PYTHONPATH": str(ROOT), "LORAGATE__HEALTH__PROBE_INTERVAL_S": "0.05", **environ}
    own = [ports.unused(), ports.unused()]
    argv = ["serve", "--engine", engine.url, "--data-dir", str(home), "--port", str(own[0])]
    with (home / "printed").open("ab") as printed:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *argv, "--admin-port", str(own[1])),
            cwd=home,
            env=env,
            stdout=printed,
            stderr=printed,
        )
    url = f"http://127.0.0.1:{own[0]}"
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http, asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{url}/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.02)
            admin = {"authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
            made = await http.post(f"http://127.0.0.1:{own[1]}/admin/v1/keys", json={"name": "x"}, headers=admin)
        yield Child(process, url, f"http://127.0.0.1:{own[1]}", own[0], made.json()["key"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def caller(child: Child) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {child.key}"}
    return httpx.AsyncClient(base_url=child.url, headers=headers, timeout=30, trust_env=False)
