"""Builds the Snapshot that every request reads, from the database and the settings, and swaps it whole.

A change is noticed by one cheap query every half second (a revoked key of another process ends within 1 s), or
at once when this process made it. The only place where the registry, the keys and the data plane meet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import sqlalchemy as sa

from adapters import revision
from adapters import store as adapter_store
from adapters.db import Database
from adapters.errors import ServiceError
from adapters.types import Served
from gateway import store
from gateway.keys import to_snapshot
from gateway.settings import ModelLimits, Settings
from gateway.v1.snapshot import EMPTY, NO_LIMITS, Key, Limits, Snapshot, Target

log = logging.getLogger("loragate.refresh")

POLL_S = 0.5


class Refresher:
    """swap: takes the new snapshot. base: what the engines call the base, None until one has said it."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        *,
        swap: Callable[[Snapshot], None],
        base: Callable[[], str | None],
        wall: Callable[[], float],
    ) -> None:
        self._db = db
        self._limits = {name: _limits(given) for name, given in settings.model_limits.items()}
        self._swap = swap
        self._base = base
        self._wall = wall
        self._seen: tuple[int, str | None] = (-1, None)
        self._serial = 0
        self._one_at_a_time = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.trouble: str | None = None  # why the registry cannot be read now
        self.snapshot = EMPTY

    async def __aenter__(self) -> Refresher:
        await self.refresh()
        self._task = asyncio.create_task(self._watch(), name="refresh")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Look, and swap the snapshot if anything changed; returns once the change is what requests see."""
        async with self._one_at_a_time:
            base = self._base()
            seen = (await self._db.read(revision.current), base)
            if seen == self._seen:
                return
            snapshot = await self._db.read(lambda conn: self._build(conn, base))
            # Read before the rows were: a change in between only means one more look.
            self._seen = seen
            self.snapshot = snapshot
            self._swap(snapshot)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
                self.trouble = None
            except ServiceError as error:
                # Known keys and models keep working from memory; /readyz turns red.
                if self.trouble is None:
                    log.warning("the registry cannot be read: %s", error.message)
                self.trouble = f"the registry cannot be read: {error.message}"

    def _build(self, conn: sa.Connection, base: str | None) -> Snapshot:
        """On a database thread: rows to one frozen value."""
        self._serial += 1
        models: dict[str, Target] = {}
        versions: dict[str, Target] = {}
        if base is not None:
            public = public_base(base)
            models[public] = Target(public, base, None, self._limits.get(public, NO_LIMITS))
            self._add(adapter_store.served(conn), base, models, versions)
        keys = to_snapshot(store.live_keys(conn, self._wall()))
        return Snapshot(
            self._serial, None if base is None else public_base(base), _without_empty_limits(keys), models, versions
        )

    def _add(self, served: Iterable[Served], base: str, models: dict[str, Target], versions: dict[str, Target]) -> None:
        for version in served:
            if version.base is not None and version.base != base:
                continue  # made for another base: the engine would refuse it
            target = Target(
                version.name,
                version.engine_name,
                version.version,
                self._limits.get(version.name, NO_LIMITS),
                int(version.created_at),
            )
            versions[f"{version.name}@{version.version}"] = target
            if version.live:
                models[version.name] = target


def public_base(engine_id: str) -> str:
    """The base's public id: the last path segment of what the engine calls it (a served path must not be shown)."""
    return engine_id.rstrip("/").rpartition("/")[2]


def _limits(given: ModelLimits) -> Limits:
    return Limits(given.rpm, given.tpm, given.concurrency, given.daily_tokens)


def _without_empty_limits(keys: dict[str, Key]) -> dict[str, Key]:
    """The one NO_LIMITS for all that have none: the hot path compares by identity."""
    return {key_id: replace(key, limits=NO_LIMITS) if key.limits == NO_LIMITS else key for key_id, key in keys.items()}
