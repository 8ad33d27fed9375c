"""Rows of the registry and of the keys to the next Snapshot: whatever is equal is the same object as in the one before.

So a change costs no memory for what did not change, and what others remember by identity (verified tokens, for one)
stays good. Runs on a database thread. Must not know when that is worth doing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import sqlalchemy as sa

from adapters import store as adapter_store
from adapters.types import Ceilings, Served
from gateway import store
from gateway.v1.snapshot import NO_LIMITS, Limits, Snapshot, Target

T = TypeVar("T")
_NONE = Ceilings()


def assemble(
    conn: sa.Connection, before: Snapshot, base: str | None, limits: Mapping[str, Limits], now: float
) -> Snapshot:
    """The snapshot after `before`. base: what the engines call theirs; limits: per public name; now: unix seconds."""
    rows = store.live_keys(conn, now)
    keys = _same(before.keys, {key.id: _same(before.keys.get(key.id), key) for key in rows})
    if base is None:
        return Snapshot(before.serial + 1, None, keys, {}, {})
    public = public_base(base)
    own = Target(public, base, None, limits.get(public, NO_LIMITS))
    models = {public: _same(before.models.get(public), own)}
    versions: dict[str, Target] = {}
    merged: dict[str, Limits] = {}
    tried: list[tuple[Target, float]] = []  # canaries, percent of callers
    for version in adapter_store.served(conn):
        if version.base is not None and version.base != base:
            continue  # made for another base: the engine would refuse it
        pinned = f"{version.name}@{version.version}"
        known = before.versions.get(pinned)
        target = _target(version, pinned, known, _of(version, known, limits, merged))
        versions[pinned if pinned != target.engine_name else target.engine_name] = target
        if version.live and target.name != public:  # registered before an engine said that this is the base's name
            models[target.name] = target
        elif version.canary_percent is not None and target.name != public:
            tried.append((target, version.canary_percent))
    canaries = _split(before, models, tried)
    return Snapshot(
        before.serial + 1, public, keys, _same(before.models, models), _same(before.versions, versions), canaries
    )


def _split(before: Snapshot, models: dict[str, Target], tried: list[tuple[Target, float]]) -> dict[str, Target]:
    """Give each name in `models` its canary; one without a live version has none. Returns those that have one."""
    canaries = {}
    for target, percent in tried:
        live = models.get(target.name)
        if live is not None:
            both = replace(live, canary=target, canary_percent=percent)
            models[target.name] = canaries[target.name] = _same(before.models.get(target.name), both)
    return canaries


def public_base(engine_id: str) -> str:
    """The base's public id: the last path segment of what the engine calls it (a served path must not be shown)."""
    return engine_id.rstrip("/").rpartition("/")[2]


def effective(own: Ceilings, given: Limits) -> Limits:
    """An adapter's own limits where it has them, else those of the settings, field by field."""
    if own == _NONE:
        return given
    pairs = zip(
        (own.rpm, own.tpm, own.concurrency, own.daily_tokens),
        (given.rpm, given.tpm, given.concurrency, given.daily_tokens),
        strict=True,
    )
    return Limits(*(theirs if mine is None else mine for mine, theirs in pairs))


def _of(version: Served, known: Target | None, given: Mapping[str, Limits], merged: dict[str, Limits]) -> Limits:
    """One object for all versions of a name, and for as long as it is the same: the ledger compares identities."""
    limits = merged.get(version.name)
    if limits is None:
        limits = effective(version.ceilings, given.get(version.name, NO_LIMITS))
        merged[version.name] = limits = _same(known.limits if known is not None else None, limits)
    return limits


def _target(version: Served, pinned: str, known: Target | None, limits: Limits) -> Target:
    created = int(version.created_at)
    if (
        known is not None
        and known.engine_name == version.engine_name
        and known.limits is limits
        and known.created == created
        and known.thinking is version.thinking
    ):
        return known
    return Target(version.name, version.engine_name, version.version, limits, created, thinking=version.thinking)


def _same(before: T | None, after: T) -> T:
    """`before` itself where nothing is different."""
    return before if before is not None and before == after else after
