"""A name server as the test tells it, and engines on one port of several loopback addresses, as pods have them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running

HOST = "vllm.test"


class Names:
    """What every name says now. Asked from threads; while `gate` is closed it hangs."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.error: OSError | None = None
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, host: str) -> Sequence[str]:
        self.asked += 1
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.addresses


class Pods:
    """Engines that are started one by one, all on one port."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.port = 0

    async def start(self, address: str, base: str = "demo-base") -> FakeVLLM:
        engine = await self._stack.enter_async_context(FakeVLLM(base, host=address, port=self.port))
        self.port = int(engine.url.rpartition(":")[2])
        return engine


@asynccontextmanager
async def pods() -> AsyncIterator[Pods]:
    async with AsyncExitStack() as stack:
        yield Pods(stack)


@asynccontextmanager
async def named(data_dir: Path, names: Names, port: int, **settings: Any) -> AsyncIterator[Running]:
    """A gateway whose engines are found by name; looks it up every 20 ms."""
    settings.setdefault("engines", [{"url": f"http://{HOST}:{port}", "discover": "dns"}])
    settings.setdefault("fleet", {"resolve_s": 0.02})
    async with running(data_dir, [], resolve=names, **settings) as gateway:
        yield gateway


def states(gateway: Running) -> dict[str, str]:
    """Address → state, of every replica."""
    found = gateway.started.gateway.proxy.fleet.replicas
    return {replica.url.partition("//")[2].rpartition(":")[0]: replica.state.value for replica in found}
