"""Real vLLM as an operator of a fleet starts it: by hand, told of adapters by the gateway alone, on a port it keeps.

Must not know of the gateway. One that is killed is started again on the same port with the same flags.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gateway.local.engine import launch
from gateway.local.hardware import Hardware, look
from gateway.local.models import Model, demo_model
from gateway.local.places import Places
from gateway.local.process import end_tree, kill_tree
from tests import ports

START_S = 300  # half a minute; on a machine under load several times that
SLOTS = 4


@dataclass
class Replica:
    """One engine. `directory` is its own: log, link to the model, an empty folder where the resolver would look."""

    python: Path
    directory: Path
    port: int = field(default_factory=ports.unused)
    slots: int = SLOTS
    plugins: str | None = None  # VLLM_PLUGINS instead of the usual
    key: str = "fleet"
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.directory / "engine.log"

    def start(self) -> None:
        """Start it; `ready` waits for it."""
        places = Places(self.directory)
        places.prepare()
        base: Model = demo_model()
        hardware: Hardware = look(os.environ)
        plan = launch(
            self.python,
            base,
            link=base.path,
            places=places,
            hardware=hardware,
            port=self.port,
            api_key=self.key,
            environ={**os.environ, **({} if hardware.gpus else {"VLLM_CPU_KVCACHE_SPACE": "1"})},
            flags=("--max-loras", str(self.slots), "--max-cpu-loras", str(self.slots)),
        )
        env = dict(plan.env) | ({} if self.plugins is None else {"VLLM_PLUGINS": self.plugins})
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                plan.argv, cwd=self.directory, env=env, stdout=out, stderr=out, start_new_session=True
            )

    async def ready(self) -> float:
        """Seconds until it answered; AssertionError with the log's end where it died or took too long."""
        assert self._process is not None
        began = time.monotonic()
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            while True:
                assert self._process.poll() is None, self._tail()
                assert time.monotonic() - began < START_S, self._tail()
                try:
                    if (await http.get(f"{self.url}/health")).status_code == 200:
                        return time.monotonic() - began
                except httpx.TransportError:
                    await asyncio.sleep(0.1)

    def kill(self) -> None:
        """kill -9 of the process that holds the sockets: when this returns, nobody can be answered any more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def sweep(self) -> None:
        """End what a killed one has left: vLLM's workers live on for some seconds."""
        assert self._process is not None
        kill_tree(self._process.pid)

    async def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            await end_tree(self._process.pid, grace_s=10)
            self._process.wait()

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


@asynccontextmanager
async def replicas(python: Path, directory: Path, count: int, *, slots: int = SLOTS) -> AsyncIterator[list[Replica]]:
    """`count` engines, started at once and ready; ended afterwards, whatever happened."""
    made = [Replica(python, directory / f"replica-{number}", slots=slots) for number in range(count)]
    try:
        for replica in made:
            replica.start()
        await asyncio.gather(*(replica.ready() for replica in made))
        yield made
    finally:
        for replica in made:
            await replica.stop()
