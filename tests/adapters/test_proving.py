"""Engines are held to one another, whichever was first and whoever had loaded what they answer with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters import store
from adapters.db import Database
from adapters.engine import EngineClient
from adapters.errors import EngineError
from adapters.http import open_http
from adapters.proving import Prover
from adapters.reconcile import Reconciler
from adapters.service import AdapterService
from adapters.shelf import Shelf
from tests.adapters.conftest import Clock
from tests.adapters.folders import usual, write
from tests.fake_vllm import FakeVLLM


@asynccontextmanager
async def proving(
    db: Database, root: Path, clock: Clock, *engines: FakeVLLM
) -> AsyncIterator[tuple[AdapterService, Reconciler]]:
    """A gateway's adapter side that asks for proofs; each engine has had one turn."""
    async with open_http() as http:
        clients = [EngineClient(engine.url, None, root, http) for engine in engines]
        reconciler = Reconciler(db, clients, clock=clock, prove=Prover(db), interval_s=60)
        for engine in engines:
            await reconciler.tick(engine.url)
        yield AdapterService(db, Shelf(root), reconciler, clock=clock), reconciler
        await reconciler.close()


async def test_of_engines_that_are_asked_at_the_same_time_none_may_differ(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    async with FakeVLLM() as one, FakeVLLM() as other:
        other.lies[None] = "another-adapter"
        async with proving(db, tmp_path / "store", clock, one, other) as (service, reconciler):
            folder = write(tmp_path / "a", tensors=usual())
            with pytest.raises(EngineError, match="unlike the other engines"):
                await service.register(folder, "a", promote=True)
            adapter = await service.show("a")
            assert adapter.live is None
            (name,) = (version.engine_name for version in adapter.versions)
            assert sum(name in view.resident for view in reconciler.residency.values()) == 1


async def test_what_somebody_else_has_loaded_is_asked_before_it_goes_live(
    db: Database, tmp_path: Path, clock: Clock
) -> None:
    """It is listed by an engine that has not had a turn since: resident at the first look, and never asked."""
    async with FakeVLLM() as engine:
        async with proving(db, tmp_path / "store", clock, engine) as (service, _):
            name = (await service.register(write(tmp_path / "a", tensors=usual()), "a")).versions[0].engine_name
            assert await db.read(lambda conn: store.proof(conn, name))
        async with proving(db, tmp_path / "store", clock, engine) as (service, reconciler):
            await engine.restart()
            await reconciler._replicas[engine.url].probe()
            engine.loaded[name] = str(tmp_path / "store" / name)
            engine.lies[name] = "another-adapter"
            with pytest.raises(EngineError, match="unlike the other engines"):
                await service.promote("a", name.partition("@")[2])
            assert (await service.show("a")).live is None
            engine.lies.clear()
            await service.promote("a", name.partition("@")[2])
