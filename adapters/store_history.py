"""The history of adapters: one line for everything that moved, never changed, kept when the adapter is gone.

Must not know what moved it: adapters/store.py writes here in the transaction of the move.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from adapters.schema import metadata
from adapters.types import Event, Version

events = sa.Table(
    "adapter_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("version", sa.Text),
    sa.Column("engine_name", sa.Text, index=True),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("actor", sa.Text),
)


def record(conn: sa.Connection, at: float, what: str, version: Version, *, by: str, why: str = "") -> None:
    """Write down what moved, when, by whom and why."""
    row = {"at": at, "what": what, "name": version.name, "version": version.version, "why": why, "actor": by}
    conn.execute(sa.insert(events).values(**row, engine_name=version.engine_name))


def note(conn: sa.Connection, at: float, what: str, name: str, *, by: str, why: str = "") -> None:
    """Write down what changed of an adapter as a whole."""
    conn.execute(sa.insert(events).values(at=at, what=what, name=name, why=why, actor=by))


def registrars(conn: sa.Connection, names: Collection[str]) -> dict[tuple[str, str], str | None]:
    """(name, version) → who registered it, the last time that somebody did."""
    columns = (events.c.name, events.c.version, events.c.actor)
    query = sa.select(*columns).where(events.c.what == "registered").order_by(events.c.id)
    found: dict[tuple[str, str], str | None] = {}
    asked = sorted(names)
    for start in range(0, len(asked), 500):  # older SQLite binds at most 999 parameters
        for name, version, by in conn.execute(query.where(events.c.name.in_(asked[start : start + 500]))):
            found[name, version] = by
    return found


def history(conn: sa.Connection, name: str, before: int | None, limit: int) -> tuple[tuple[Event, ...], bool]:
    """At most `limit` events of `name`, newest first, older than the event `before`, and whether there are more."""
    query = sa.select(events).where(events.c.name == name).order_by(events.c.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(events.c.id < before)
    found = [Event(r.id, r.at, r.what, r.name, r.version, r.actor, r.why) for r in conn.execute(query)]
    return tuple(found[:limit]), len(found) > limit
