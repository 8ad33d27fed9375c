"""What a large fleet costs in the product's own code: planning, choosing a replica, and flipping an alias.

Knows the product's functions; starts no server. Times are CPU, of the source as it is imported (compiled or not).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters import store as adapter_store
from adapters.db import Database
from adapters.placement import Plan, home, place
from adapters.types import Version, VersionState
from bench.mock_engine import MODEL
from bench.placement_fleet import Shape
from gateway.refresh import Refresher
from gateway.settings import Health, Settings
from gateway.v1.connection import UpstreamConfig
from gateway.v1.routing import Fleet, Replica, ReplicaState
from gateway.v1.snapshot import Snapshot, Target
from gateway.v1.upstream import Upstream

Figures = dict[str, list[float]]


def costs(shape: Shape, scratch: Path, rounds: int = 9) -> Figures:
    """CPU: `place_ms`, `joined_ms`, `home_us`, `pick_us`, `flip_ms` and what they are the first time."""
    names = [f"adapter-{number:05d}@{number:012x}" for number in range(shape.adapters)]
    urls = [f"http://127.1.{number // 8}.{number % 8}:8000" for number in range(shape.replicas + 1)]
    figures, plan = planning(names, urls, shape, rounds)
    figures["pick_us"] = asyncio.run(picking(plan, names, urls[:-1], shape, rounds))
    (scratch / "flip").mkdir(parents=True)
    figures["snapshot_ms"], figures["flip_ms"] = asyncio.run(flipping(names, scratch / "flip", rounds))
    return figures


def planning(names: list[str], urls: list[str], shape: Shape, rounds: int) -> tuple[Figures, Plan]:
    """`place` from nothing, with every demand 5 % off the last one's, and when the last of `urls` joins; `home`."""
    rng = random.Random(shape.seed)
    slots = dict.fromkeys(urls[:-1], shape.slots)

    def demand() -> dict[str, float]:
        return {name: shape.rate / rank * rng.uniform(0.95, 1.05) for rank, name in enumerate(names, 1)}

    plan, first = timed(place, demand(), slots)
    figures: Figures = {"first_ms": [first * 1e3], "place_ms": []}
    for _ in range(rounds):
        plan, spent = timed(place, demand(), slots, (), plan)
        figures["place_ms"].append(spent * 1e3)
    figures["joined_ms"] = [timed(place, demand(), dict.fromkeys(urls, shape.slots), (), plan)[1] * 1e3]
    for figure in ("home_first_us", "home_us"):
        spent = timed(lambda: [home(plan, name, tuple(slots)) for name in names])[1]
        figures[figure] = [spent * 1e6 / len(names)]
    return figures, plan


async def picking(plan: Plan, names: list[str], urls: list[str], shape: Shape, rounds: int) -> list[float]:
    """Microseconds of `Fleet.pick`, `take` and `give_back` for one request, replicas filled as planned."""
    rng = random.Random(shape.seed)
    async with contextlib.AsyncExitStack() as stack:
        replicas = []
        for url in urls:
            upstream = Upstream(url, UpstreamConfig(), loop=asyncio.get_running_loop())
            stack.push_async_callback(upstream.aclose)
            replica = Replica(url, upstream)
            replica.state, replica.slots = ReplicaState.READY, shape.slots
            replica.resident = frozenset(name for name, homes in plan.homes.items() if url in homes)
            replicas.append(replica)
        fleet = Fleet(replicas, Health())
        targets = [Target(name, name, name[-12:]) for name in plan.homes]
        asked = rng.choices(targets, [1 / rank for rank in range(1, len(targets) + 1)], k=20_000)

        def route() -> None:
            for target in asked:
                replica = fleet.pick(target)
                if replica is not None:
                    fleet.take(replica, target)
                    fleet.give_back(replica, target)

        return [timed(route)[1] * 1e6 / len(asked) for _ in range(rounds)]


async def flipping(names: list[str], data_dir: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from a registry of as many live adapters to a snapshot: the first, and each after one promotion."""
    settings, swapped = Settings(data_dir=data_dir), list[Snapshot]()
    with opened(settings) as database:
        await database.write(lambda conn: _fill(conn, names))
        refresher = Refresher(
            database,
            settings,
            swap=swapped.append,
            base=lambda: MODEL,
            wall=time.time,
            clock=time.monotonic,
            fresh=lambda _: None,
        )
        first, flips = await _refreshed(refresher), []
        for number in range(rounds):
            name, version = f"adapter-{number:05d}", f"{number + len(names):012x}"
            await database.write(
                lambda conn, n=name, v=version: adapter_store.point(conn, n, v, 1.0, "promoted", by="operator")  # type: ignore[misc]
            )
            flips.append(await _refreshed(refresher))
            target = swapped[-1].models[name]
            if target.version != version:
                raise RuntimeError(f"{name} answers with {target.version} after {version} was promoted.")
    return [first], flips


async def _refreshed(refresher: Refresher) -> float:
    began = time.process_time()
    await refresher.refresh()
    return (time.process_time() - began) * 1e3


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    database = Database.open(settings.database)
    try:
        database.migrate()
        yield database
    finally:
        database.close()


def _fill(conn: sa.Connection, names: list[str]) -> None:
    """One live version each, and a second one, not live, of the first hundred; no files."""
    for number, engine_name in enumerate(names):
        name, _, version = engine_name.partition("@")
        adapter_store.add(conn, _version(name, version))
        adapter_store.point(conn, name, version, 1.0, "promoted", by="operator")
        if number < 100:
            adapter_store.add(conn, _version(name, f"{number + len(names):012x}"))


def _version(name: str, version: str) -> Version:
    return Version(
        name=name,
        version=version,
        digest=version.ljust(64, "0"),
        engine_name=f"{name}@{version}",
        base=MODEL,
        rank=8,
        size_bytes=10,
        source="bench",
        notes="",
        created_at=1.0,
        state=VersionState.READY,
    )


def timed(act: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    """What it returns, and seconds of CPU."""
    began = time.process_time()
    result = act(*given)
    return result, time.process_time() - began
