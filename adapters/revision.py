"""One integer that grows with every write that changes what requests see: a change is noticed with one cheap query.

Bumped first in a transaction: the row's lock then also serialises writers on PostgreSQL.
"""

from __future__ import annotations

import sqlalchemy as sa

from adapters.db import Database
from adapters.schema import metadata

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # always 1
    sa.Column("n", sa.BigInteger, nullable=False),
)


def bump(conn: sa.Connection) -> None:
    """Say that keys, models or limits are about to change in this transaction."""
    conn.execute(sa.update(revision).where(revision.c.id == 1).values(n=revision.c.n + 1))


def hold(conn: sa.Connection) -> None:
    """Let no other writer change anything until this transaction ends; requests do not see what it writes."""
    conn.execute(sa.select(revision.c.n).with_for_update())


def read(conn: sa.Connection) -> int:
    """The number of changes, as this transaction sees it."""
    return int(conn.execute(sa.select(revision.c.n)).scalar_one())


async def current(db: Database) -> int:
    """The number of changes so far."""
    return int(await db.look("SELECT n FROM revision WHERE id = 1"))
