"""One gateway's adapter side on a real database, a real store and real (fake) engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.db import Database
from adapters.engine import EngineClient
from adapters.http import open_http
from adapters.reconcile import Reconciler
from adapters.service import AdapterService
from adapters.shelf import Shelf
from tests import databases
from tests.fake_vllm import FakeVLLM


class Clock:
    """Time that moves when told, and a millisecond with every look: no two moments are the same."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@dataclass
class Rig:
    """The parts that a gateway wires together."""

    db: Database
    shelf: Shelf
    reconciler: Reconciler
    service: AdapterService
    engines: tuple[FakeVLLM, ...]
    clock: Clock
    changes: list[int]
    change: asyncio.Condition

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until the published residency makes `true` true."""
        async with self.change:
            await self.change.wait_for(true)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(databases.sqlite(tmp_path / "data" / "loragate.db"))
    yield opened
    opened.close()


@asynccontextmanager
async def rigged(
    db: Database, root: Path, clock: Clock, *engines: FakeVLLM, loops: bool = False, preload_max: int = 64
) -> AsyncIterator[Rig]:
    """Start the given engines. Without `loops` each has had one turn, and further turns are the test's to make."""
    changes: list[int] = []
    change = asyncio.Condition()
    tasks: set[asyncio.Task[None]] = set()

    async def tell() -> None:
        async with change:
            change.notify_all()

    def on_change() -> None:
        task = asyncio.ensure_future(tell())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def changed() -> None:
        changes.append(1)

    async with AsyncExitStack() as stack:
        shelf = Shelf(root)
        http = await stack.enter_async_context(open_http())
        for engine in engines:
            await stack.enter_async_context(engine)
        clients = [EngineClient(engine.url, None, shelf.root, http) for engine in engines]
        reconciler = Reconciler(db, clients, clock=clock, on_change=on_change, interval_s=60, preload_max=preload_max)
        service = AdapterService(db, shelf, reconciler, clock=clock, changed=changed)
        if loops:
            reconciler.start()
        else:
            for engine in engines:
                await reconciler.tick(engine.url)
        try:
            yield Rig(db, shelf, reconciler, service, engines, clock, changes, change)
        finally:
            await reconciler.close()
            await asyncio.gather(*tasks)


@pytest.fixture
async def rig(db: Database, tmp_path: Path, clock: Clock) -> AsyncIterator[Rig]:
    """Two engines of one pool, whose turns the test makes."""
    async with rigged(db, tmp_path / "data" / "adapters", clock, FakeVLLM(), FakeVLLM()) as made:
        yield made
