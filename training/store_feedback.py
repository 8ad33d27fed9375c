"""All SQL of feedback: what callers said about answers, as functions of a Connection. Must not know who may send it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from adapters.errors import NotFound
from adapters.schema import metadata

feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("model", sa.Text, nullable=False, index=True),
    sa.Column("version", sa.Text),
    sa.Column("body", sa.Text, nullable=False),  # a JSON object
)

AT_ONCE = 200  # rows read in one piece where all are looked at


@dataclass(frozen=True, slots=True)
class Feedback:
    """One thing that a caller said. model: a public name; version: 12 hex digits, None where it was not said.

    body: messages, and of answer, correction, rating, note, user, tools what was given.
    """

    id: int
    at: float  # unix seconds
    owner: str | None  # id of the key that sent it
    model: str
    version: str | None
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which feedback: all that is given must be so. user: the caller's own word for whom it spoke for."""

    model: str | None = None
    version: str | None = None
    owner: str | None = None
    user: str | None = None


def add(
    conn: sa.Connection, *, at: float, owner: str | None, model: str, version: str | None, body: Mapping[str, Any]
) -> Feedback:
    text = json.dumps(body)  # in ASCII: PostgreSQL takes no NUL in a text
    row = {"at": at, "owner": owner, "model": model, "version": version, "body": text}
    made = conn.execute(sa.insert(feedback).values(row)).inserted_primary_key
    return Feedback(int(made[0]) if made is not None else 0, at, owner, model, version, body)


def find(conn: sa.Connection, feedback_id: int, owner: str | None = None) -> Feedback:
    """One row; NotFound, also where it is another owner's than `owner` (None: whoever's)."""
    query = sa.select(feedback).where(feedback.c.id == feedback_id)
    if owner is not None:
        query = query.where(feedback.c.owner == owner)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise NotFound("There is no feedback with this id.", param="id")
    return _feedback(row)


def page(conn: sa.Connection, wanted: Wanted, after: int, limit: int) -> tuple[tuple[Feedback, ...], bool]:
    """At most `limit` rows with an id above `after`, oldest first, and whether there are more."""
    found: list[Feedback] = []
    for each in _walk(conn, wanted, after):
        if len(found) == limit:
            return tuple(found), True
        found.append(each)
    return tuple(found), False


def count(conn: sa.Connection, owner: str) -> int:
    """How many rows a key has here."""
    counted = sa.select(sa.func.count()).select_from(feedback).where(feedback.c.owner == owner)
    return int(conn.execute(counted).scalar_one())


def remove(conn: sa.Connection, feedback_id: int) -> None:
    conn.execute(sa.delete(feedback).where(feedback.c.id == feedback_id))


def clear(conn: sa.Connection, wanted: Wanted) -> int:
    """Remove all that is wanted; how many that were."""
    removed = 0
    for each in _walk(conn, wanted, 0):
        remove(conn, each.id)
        removed += 1
    return removed


def forget_before(conn: sa.Connection, at: float) -> int:
    """Remove what came before `at`; how many that were."""
    return int(conn.execute(sa.delete(feedback).where(feedback.c.at < at)).rowcount)


def _walk(conn: sa.Connection, wanted: Wanted, after: int) -> Iterator[Feedback]:
    query = sa.select(feedback).order_by(feedback.c.id).limit(AT_ONCE)
    for column, value in ((feedback.c.model, wanted.model), (feedback.c.version, wanted.version)):
        if value is not None:
            query = query.where(column == value)
    if wanted.owner is not None:
        query = query.where(feedback.c.owner == wanted.owner)
    while True:
        rows = conn.execute(query.where(feedback.c.id > after)).all()
        for row in rows:
            each = _feedback(row)
            if wanted.user is None or each.body.get("user") == wanted.user:
                yield each
        if len(rows) < AT_ONCE:
            return
        after = rows[-1].id


def _feedback(row: sa.Row[Any]) -> Feedback:
    read = dict(row._mapping)
    return Feedback(**read | {"body": json.loads(read["body"])})
