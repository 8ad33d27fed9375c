"""All SQL of uploaded files, as functions of a Connection. Must not know where their bytes lie."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from adapters.schema import metadata
from training.errors import FileMissing
from training.types import FileStatus, StoredFile

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("details", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
)


def add(conn: sa.Connection, file: StoredFile) -> None:
    """A new file, whose bytes are on disk."""
    conn.execute(sa.insert(files).values(asdict(file)))


def add_within(conn: sa.Connection, file: StoredFile, most: int | None) -> int | None:
    """Add it where all files of its owner then take at most `most` bytes; else what they take without it."""
    if most is not None and file.owner is not None:
        taken = taken_bytes(conn, file.owner)
        if taken + file.bytes > most:
            return taken
    add(conn, file)
    return None


def find(conn: sa.Connection, file_id: str, owner: str | None = None) -> StoredFile:
    """One file; FileMissing, also where it is another owner's than `owner` (None: whoever's)."""
    query = sa.select(files).where(files.c.id == file_id)
    if owner is not None:
        query = query.where(files.c.owner == owner)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise FileMissing(f"No such File object: {file_id[:64]}", param="id")
    return _file(row)


def page(
    conn: sa.Connection, *, owner: str | None, purpose: str | None, after: str | None, limit: int, newest_first: bool
) -> tuple[tuple[StoredFile, ...], bool]:
    """At most `limit` files behind the file `after`, and whether there are more. FileMissing."""
    order = (files.c.created_at, files.c.id)
    query = sa.select(files).order_by(*(column.desc() if newest_first else column for column in order)).limit(limit + 1)
    if owner is not None:
        query = query.where(files.c.owner == owner)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        last = find(conn, after, owner)
        here, there = sa.tuple_(*order), sa.tuple_(sa.literal(last.created_at), sa.literal(last.id))
        query = query.where(here < there if newest_first else here > there)
    found = [_file(row) for row in conn.execute(query)]
    return tuple(found[:limit]), len(found) > limit


def set_status(conn: sa.Connection, file_id: str, status: FileStatus, details: str | None) -> None:
    conn.execute(sa.update(files).where(files.c.id == file_id).values(status=status, details=details))


def remove(conn: sa.Connection, file_id: str, owner: str | None = None) -> None:
    """Forget it; its bytes go next. FileMissing, as in `find`."""
    find(conn, file_id, owner)
    conn.execute(sa.delete(files).where(files.c.id == file_id))


def taken_bytes(conn: sa.Connection, owner: str) -> int:
    """What all files of `owner` take."""
    return int(
        conn.execute(
            sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(files.c.owner == owner)
        ).scalar_one()
    )


def expired(conn: sa.Connection, now: float) -> tuple[str, ...]:
    """Ids of the files whose time has come."""
    return tuple(conn.execute(sa.select(files.c.id).where(files.c.expires_at <= now)).scalars())


def known(conn: sa.Connection) -> frozenset[str]:
    """Every file's id."""
    return frozenset(conn.execute(sa.select(files.c.id)).scalars())


def _file(row: sa.Row[Any]) -> StoredFile:
    read = dict(row._mapping)
    return StoredFile(**read | {"status": FileStatus(read["status"])})
