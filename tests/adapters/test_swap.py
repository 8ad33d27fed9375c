"""What has no part any more leaves the engines when no request runs on it, and its files when nobody may want them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapters import store
from adapters.gateways import Alone
from adapters.swap import Swap
from adapters.traffic import NoTraffic
from tests.adapters.conftest import Rig
from tests.adapters.folders import usual, write


@dataclass
class Running(NoTraffic):
    """Requests run on these engine names."""

    names: set[str] = field(default_factory=set)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def in_use(self, engine_name: str) -> bool:
        self.asked.set()
        return engine_name in self.names


async def _three(rig: Rig, tmp_path: Path) -> tuple[str, ...]:
    """Engine names of what was live first, then, and is now: the first has no part any more."""
    names = []
    for seed in range(3):
        made = await rig.service.register(write(tmp_path / f"{seed}", tensors=usual(seed=seed)), "a", promote=True)
        names.append(next(each.engine_name for each in made.versions if each.version == made.live))
    return tuple(names)


def _swap(rig: Rig, running: Running, drain_s: float) -> Swap:
    return Swap(rig.db, rig.shelf, rig.reconciler, running, Alone(), drain_s=drain_s)


async def _over(swap: Swap) -> None:
    async with asyncio.timeout(30):
        await asyncio.gather(*swap._tasks)


async def _loaded_again(rig: Rig, name: str) -> None:
    for engine in rig.engines:
        engine.loaded[name] = str(rig.shelf.path(name))
        await rig.reconciler.tick(engine.url)


async def test_it_is_unloaded_once_its_requests_have_ended(rig: Rig, tmp_path: Path) -> None:
    first, *others = await _three(rig, tmp_path)
    await rig.service.close()
    await _loaded_again(rig, first)
    running = Running({first})
    swap = _swap(rig, running, 300)
    swap.retire([first])
    await running.asked.wait()
    assert all(first in engine.loaded for engine in rig.engines)
    running.names.clear()
    await _over(swap)
    assert [set(engine.loaded) for engine in rig.engines] == [{*others}] * 2


async def test_what_does_not_end_keeps_it_loaded(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """vLLM dies when a name is unloaded, loaded again and asked for while a request of before runs on it (tried)."""
    first, *_ = await _three(rig, tmp_path)
    await rig.service.close()
    await _loaded_again(rig, first)
    swap = _swap(rig, Running({first}), 0)
    swap.retire([first])
    await _over(swap)
    assert all(first in engine.loaded for engine in rig.engines)
    assert f"{first} has no part any more, and still answers" in caplog.text


async def test_what_has_a_part_again_meanwhile_stays(rig: Rig, tmp_path: Path) -> None:
    first, _, last = await _three(rig, tmp_path)
    await rig.service.close()
    await _loaded_again(rig, first)
    running = Running({first})
    swap = _swap(rig, running, 300)
    swap.retire([first])
    await running.asked.wait()
    await rig.service.promote("a", first.partition("@")[2])
    running.names.clear()
    await _over(swap)
    assert all({first, last} <= engine.loaded.keys() for engine in rig.engines)


async def test_files_stay_while_requests_run_and_go_after_the_engines_have_forgotten(rig: Rig, tmp_path: Path) -> None:
    first, *_ = await _three(rig, tmp_path)
    await rig.service.close()
    await _loaded_again(rig, first)
    running = Running({first})
    swap = _swap(rig, running, 300)
    name, _, version = first.partition("@")
    await rig.db.write(lambda conn: store.remove(conn, name, version, 1.0))
    await swap.discard([first])
    assert rig.shelf.holds(first)
    assert all(first in engine.loaded for engine in rig.engines)
    running.names.clear()
    await _over(swap)
    assert not rig.shelf.holds(first)
    assert not any(first in engine.loaded for engine in rig.engines)
