"""Which gateways share this database, what each one's requests see, and what they have in flight. PostgreSQL only.

Times are the database's: clocks of machines differ. Must not know what is concluded from it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from adapters.schema import metadata

ALIVE_S = 10.0  # seen so recently, a gateway counts
FORGOTTEN_S = 60.0

gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("lingering", sa.Text, nullable=False),
)
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another gateway as it last said. revision: what its requests see; using: engine names they may still want."""

    id: str
    revision: int
    using: frozenset[str]


def beat(conn: sa.Connection, gateway: str, revision: int, using: Collection[str]) -> tuple[Peer, ...]:
    """Say that `gateway` lives, forget those that have long been silent; what the others that live have said."""
    values = {"seen_at": _NOW, "revision": revision, "lingering": json.dumps(sorted(using))}
    if not conn.execute(sa.update(gateways).where(gateways.c.id == gateway).values(**values)).rowcount:
        conn.execute(sa.insert(gateways).values(id=gateway, **values))
    conn.execute(sa.delete(gateways).where(gateways.c.seen_at < _NOW - FORGOTTEN_S))
    return peers(conn, gateway)


def peers(conn: sa.Connection, gateway: str) -> tuple[Peer, ...]:
    """All gateways but `gateway` that were seen a moment ago."""
    query = sa.select(gateways).where(gateways.c.id != gateway, gateways.c.seen_at > _NOW - ALIVE_S)
    return tuple(Peer(row.id, row.revision, frozenset(json.loads(row.lingering))) for row in conn.execute(query))


def leave(conn: sa.Connection, gateway: str) -> None:
    """It has stopped, and nothing of it is in flight."""
    conn.execute(sa.delete(gateways).where(gateways.c.id == gateway))
