"""All SQL of the gateway room: API keys and daily usage. Rows become frozen types before they leave.

Functions take an open connection and are run by `Database.read` and `Database.write`; bound parameters only.
Must not know tokens, HTTP or who may do what.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Row, func, or_, select, tuple_

from adapters import revision
from adapters.schema import metadata
from gateway.v1.snapshot import NO_LIMITS, Credential, Key, Limits

T = TypeVar("T")

# Made by adapters/migrations; times are unix seconds.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("previous_digest", sa.LargeBinary),
    sa.Column("previous_valid_until", sa.Double),
    sa.Column("scopes", sa.Text, nullable=False),  # a JSON list
    sa.Column("models", sa.Text),  # a JSON list; null: all
    sa.Column("rpm", sa.Integer),
    sa.Column("tpm", sa.Integer),
    sa.Column("concurrency", sa.Integer),
    sa.Column("daily_tokens", sa.BigInteger),
    sa.Column("expires_at", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)
usage_daily = sa.Table(
    "usage_daily",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("day", sa.Text, primary_key=True),  # YYYY-MM-DD, UTC
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)

ROWS_AT_ONCE = 500  # read ahead: with psycopg through a server-side cursor, never 10,000 rows in one list
_LIMITS = ("rpm", "tpm", "concurrency", "daily_tokens")
_COUNTS = ("requests", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may do: everything about it that an operator chooses."""

    name: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None  # public names; None: all
    limits: Limits = NO_LIMITS
    expires_at: float | None = None  # unix seconds


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row of api_keys. Times are unix seconds."""

    id: str
    grant: Grant
    digest: bytes = field(repr=False)
    created_at: float
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_valid_until: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Requests and tokens of one group; what was not grouped by is None."""

    key: str | None
    model: str | None
    day: str | None  # YYYY-MM-DD, UTC
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which usage to show: days from `since` to `until`, both included; `group_by` of key, model, day."""

    since: str | None = None
    until: str | None = None
    key: str | None = None
    model: str | None = None
    group_by: tuple[str, ...] = ("key", "model", "day")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: Sequence[T]
    has_more: bool


def add_key(conn: Connection, key: ApiKey) -> None:
    revision.bump(conn)
    conn.execute(sa.insert(api_keys).values(id=key.id, created_at=key.created_at, **_columns(key)))


def change_key(conn: Connection, key_id: str, change: Callable[[ApiKey | None], ApiKey]) -> ApiKey:
    """Read, change and write one key in one transaction; whatever `change` raises leaves it as it was."""
    found = get_key(conn, key_id)
    changed = change(found)
    if changed != found:
        revision.bump(conn)
        conn.execute(sa.update(api_keys).where(api_keys.c.id == changed.id).values(**_columns(changed)))
    return changed


def get_key(conn: Connection, key_id: str) -> ApiKey | None:
    row = conn.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
    return None if row is None else _key(row)


def list_keys(conn: Connection, *, after: ApiKey | None, limit: int) -> Page[ApiKey]:
    """Oldest first, revoked ones included; `after` is the last key already seen."""
    query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id).limit(limit + 1)
    if after is not None:
        query = query.where(tuple_(api_keys.c.created_at, api_keys.c.id) > (after.created_at, after.id))
    rows = [_key(row) for row in conn.execute(query)]
    return Page(rows[:limit], len(rows) > limit)


def live_keys(conn: Connection, now: float) -> Iterator[Key]:
    """Every key that is neither revoked nor expired, as requests see it; use it up before the connection is closed.

    Row by row, and equal parts are one object: 10,000 keys are read at once and must stay small (4 MB, 30 ms).
    """
    table = api_keys.c
    query = select(
        *(table.id, table.digest, table.previous_digest, table.previous_valid_until),
        *(table.scopes, table.models, table.expires_at),
        *(table[name] for name in _LIMITS),
    ).where(table.revoked_at.is_(None), or_(table.expires_at.is_(None), table.expires_at > now))
    limits_of: dict[tuple[int | None, ...], Limits] = {(None,) * len(_LIMITS): NO_LIMITS}
    names_of: dict[str, frozenset[str]] = {}
    rows = conn.execute(query.execution_options(yield_per=ROWS_AT_ONCE))
    for key_id, digest, previous, until, scopes, models, expires_at, *ceilings in rows:
        credentials: tuple[Credential, ...] = (Credential(digest),)
        if previous is not None:
            credentials += (Credential(previous, until),)
        limits = limits_of.get(tuple(ceilings))
        if limits is None:
            limits = limits_of[tuple(ceilings)] = Limits(*ceilings)
        allowed = None if models is None else _names(models, names_of)
        yield Key(key_id, credentials, _names(scopes, names_of), allowed, limits, expires_at)


def _names(text: str, known: dict[str, frozenset[str]]) -> frozenset[str]:
    names = known.get(text)
    if names is None:
        names = known[text] = frozenset(json.loads(text))
    return names


def any_key(conn: Connection) -> bool:
    return conn.execute(select(api_keys.c.id).limit(1)).first() is not None


def add_usage(conn: Connection, rows: Iterable[UsageRow]) -> None:
    """Add to the day's totals, making rows where there are none. Budgets are kept by the data plane: no revision."""
    values = [
        dict(
            zip(("key_id", "model", "day", *_COUNTS), (row.key, row.model, row.day, *_counts(row)), strict=True),
        )
        for row in rows
    ]
    if not values:
        return
    conn.execute(_adding(conn.dialect.name), values)


@functools.cache
def _adding(dialect: str) -> Any:
    """INSERT … ON CONFLICT: add. Made once: to make it and its cache key anew takes 0.4 ms, twice a second."""
    insert = _insert(dialect)
    sums = {name: usage_daily.c[name] + insert.excluded[name] for name in _COUNTS}
    return insert.on_conflict_do_update(index_elements=["key_id", "model", "day"], set_=sums)


def _insert(dialect: str) -> Any:
    """The dialect's own INSERT; imported here because PostgreSQL's takes 2.2 MB."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(usage_daily)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(usage_daily)


def usage(conn: Connection, query: UsageQuery, *, skip: int, limit: int) -> Page[UsageRow]:
    """Sums per group, ordered by the group's columns."""
    table = usage_daily.c
    columns = {"day": table.day, "key": table.key_id, "model": table.model}
    groups = [column for name, column in columns.items() if name in query.group_by]
    sums = [func.sum(table[name]) for name in _COUNTS]
    statement = select(*groups, *sums).where(*_wanted(query)).group_by(*groups).order_by(*groups)
    names = [name for name in columns if name in query.group_by]
    rows = [_usage(names, tuple(row)) for row in conn.execute(statement.offset(skip).limit(limit + 1))]
    rows = [row for row in rows if row.requests]  # an ungrouped sum over nothing is one empty row
    return Page(rows[:limit], len(rows) > limit)


def day_totals(conn: Connection, day: str) -> list[tuple[str, str, int]]:
    """(key id, model, tokens) of one UTC day."""
    table = usage_daily.c
    query = select(table.key_id, table.model, table.prompt_tokens + table.completion_tokens).where(table.day == day)
    return [(row[0], row[1], int(row[2])) for row in conn.execute(query)]


def _columns(key: ApiKey) -> dict[str, Any]:
    grant = key.grant
    return {
        "name": grant.name,
        "digest": key.digest,
        "previous_digest": key.previous_digest,
        "previous_valid_until": key.previous_valid_until,
        "scopes": json.dumps(sorted(grant.scopes)),
        "models": None if grant.models is None else json.dumps(sorted(grant.models)),
        "expires_at": grant.expires_at,
        "revoked_at": key.revoked_at,
        **{name: getattr(grant.limits, name) for name in _LIMITS},
    }


def _key(row: Row[Any]) -> ApiKey:
    limits = Limits(*(getattr(row, name) for name in _LIMITS))
    return ApiKey(
        id=row.id,
        grant=Grant(
            name=row.name,
            scopes=frozenset(json.loads(row.scopes)),
            models=None if row.models is None else frozenset(json.loads(row.models)),
            limits=NO_LIMITS if limits == NO_LIMITS else limits,
            expires_at=row.expires_at,
        ),
        digest=row.digest,
        created_at=row.created_at,
        previous_digest=row.previous_digest,
        previous_valid_until=row.previous_valid_until,
        revoked_at=row.revoked_at,
    )


def _counts(row: UsageRow) -> tuple[int, int, int]:
    return row.requests, row.prompt_tokens, row.completion_tokens


def _wanted(query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    table = usage_daily.c
    wanted: list[sa.ColumnElement[bool]] = []
    if query.since is not None:
        wanted.append(table.day >= query.since)
    if query.until is not None:
        wanted.append(table.day <= query.until)
    if query.key is not None:
        wanted.append(table.key_id == query.key)
    if query.model is not None:
        wanted.append(table.model == query.model)
    return wanted


def _usage(names: Sequence[str], row: tuple[Any, ...]) -> UsageRow:
    group = dict(zip(names, row, strict=False))
    requests, prompt, completion = (int(value or 0) for value in row[len(names) :])
    return UsageRow(group.get("key"), group.get("model"), group.get("day"), requests, prompt, completion)
