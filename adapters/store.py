"""All SQL of this room, as functions of a Connection: rows in, frozen types out.

Every function that changes what requests see bumps the revision first. Must not know files or engines.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from adapters import revision
from adapters.errors import Conflict, NotFound
from adapters.schema import metadata
from adapters.store_history import events, note, record
from adapters.types import Adapter, Canary, Ceilings, Rules, Served, Version, VersionState, WantedVersion

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("live", sa.Text),
    sa.Column("previous", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("canary", sa.Text),
    sa.Column("canary_percent", sa.Double),
    sa.Column("canary_rules", sa.Text),
    sa.Column("canary_since", sa.Double),
    sa.Column("owner", sa.Text),
    sa.Column("rpm", sa.Integer),
    sa.Column("tpm", sa.Integer),
    sa.Column("concurrency", sa.Integer),
    sa.Column("daily_tokens", sa.BigInteger),
)
versions = sa.Table(
    "adapter_versions",
    metadata,
    sa.Column("name", sa.Text, sa.ForeignKey("adapters.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("engine_name", sa.Text, nullable=False, index=True),
    sa.Column("base", sa.Text),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("notes", sa.Text, nullable=False),
    sa.Column("wish", sa.Text, nullable=False),
    sa.Column("damaged", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("lineage", sa.Text),
    sa.Column("checksums", sa.Text),
    sa.Column("proof", sa.Text),
    sa.Column("thinking", sa.Boolean),
)
_CEILINGS = tuple(field.name for field in fields(Ceilings))
_NO_CEILINGS = [None] * len(_CEILINGS)
_UNLIMITED = Ceilings()
_NO_CANARY = {"canary": None, "canary_percent": None, "canary_rules": None, "canary_since": None}
# What a Version is made from: lineage and proof are long, and asked for alone.
_COLUMNS = [column for column in versions.columns if column.name not in ("lineage", "proof")]
_READ: list[sa.ColumnElement[Any]] = [*_COLUMNS, versions.c.lineage.is_not(None).label("has_lineage")]


class Wish(StrEnum):
    """What an operator asked for: `auto` keeps live and previous loaded."""

    AUTO = "auto"
    LOADED = "loaded"
    UNLOADED = "unloaded"


_WISHED = {Wish.AUTO: "kept no longer", Wish.LOADED: "kept loaded", Wish.UNLOADED: "unloaded"}


def find(conn: sa.Connection, name: str) -> Adapter:
    """One adapter with its versions, newest first; NotFound."""
    found = _adapters(conn, sa.select(adapters).where(adapters.c.name == name))
    if not found:
        raise NotFound(f"There is no adapter {name}. `loragate adapters list` shows what there is.", param="name")
    return found[0]


def page(
    conn: sa.Connection, after: str | None, limit: int, only: Collection[str] | None = None
) -> tuple[tuple[Adapter, ...], bool]:
    """At most `limit` adapters by name, beginning behind `after`, and whether there are more. only: of these names."""
    query = sa.select(adapters).order_by(adapters.c.name).limit(limit + 1)
    if only is not None:
        query = query.where(adapters.c.name.in_(sorted(only)))
    if after is not None:
        query = query.where(adapters.c.name > after)
    found = _adapters(conn, query)
    return found[:limit], len(found) > limit


def find_version(conn: sa.Connection, name: str, version: str) -> Version:
    """One version; NotFound says which there are."""
    return _among(find(conn, name), version)


def _among(adapter: Adapter, version: str) -> Version:
    for each in adapter.versions:
        if each.version == version:
            return each
    there = ", ".join(each.version for each in adapter.versions[:5]) or "none"
    raise NotFound(f"Adapter {adapter.name} has no version {version}; it has {there}.", param="version")


def add(
    conn: sa.Connection, version: Version, *, by: str = "operator", owner: str | None = None, lineage: str | None = None
) -> bool:
    """Insert `version`, and its adapter on first sight; False where the same content is there already; Conflict.

    owner: of a new adapter, the key that may delete it. lineage: JSON, how the version was made.
    """
    revision.bump(conn)
    check_clash(conn, version)
    if conn.execute(sa.select(adapters.c.name).where(adapters.c.name == version.name)).first() is None:
        at = version.created_at
        conn.execute(sa.insert(adapters).values(name=version.name, created_at=at, updated_at=at, owner=owner))
    key = (versions.c.name == version.name) & (versions.c.version == version.version)
    if conn.execute(sa.select(versions.c.version).where(key)).first() is not None:
        conn.execute(sa.update(versions).where(key).values(damaged=False, base=version.base))
        return False
    row = {column.name: getattr(version, column.name, None) for column in _COLUMNS}
    conn.execute(sa.insert(versions).values(**{**row, "wish": Wish.AUTO, "damaged": False, "lineage": lineage}))
    record(conn, version.created_at, "registered", version, by=by, why=version.source)
    return True


def check_clash(conn: sa.Connection, version: Version) -> None:
    """Refuse other content under an engine name that is in use (48 bits can be made to collide); Conflict."""
    same_name = sa.select(versions.c.digest).where(versions.c.engine_name == version.engine_name).limit(1)
    there = conn.execute(same_name).scalar()
    if there is not None and there != version.digest:
        raise Conflict(
            f"Other weights are already registered as {version.engine_name}: the first 12 digits of both digests are "
            "the same. Choose another name for this adapter.",
            param="name",
        )


def point(
    conn: sa.Connection,
    name: str,
    live: str,
    at: float,
    what: str,
    *,
    by: str,
    why: str = "",
    only_from: str | None = None,
) -> bool:
    """Make `live` answer for `name`; what answered before becomes `previous`. False where it answers already.

    A canary ends with it: it was measured against what is live no more. only_from: what has to answer until now,
    else Conflict.
    """
    revision.bump(conn)
    adapter = find(conn, name)
    version = _among(adapter, live)
    before = adapter.live
    if before == live:
        return False
    if only_from not in (None, before):
        raise Conflict(f"{name} was moved to {before} in this moment by somebody else. Look again, then decide.")
    if adapter.canary is not None and adapter.canary.version != live:
        record(conn, at, "canary ended", _among(adapter, adapter.canary.version), by=by, why=f"{live} is live now")
    key = adapters.c.name == name
    conn.execute(sa.update(adapters).where(key).values(live=live, previous=before, updated_at=at, **_NO_CANARY))
    _wish_anew(conn, version)
    record(conn, at, what, version, by=by, why=why)
    return True


def set_canary(conn: sa.Connection, name: str, canary: Canary, at: float, *, by: str, why: str = "") -> None:
    """Let `canary.version` answer a share of the callers of `name`; NotFound, Conflict where it cannot be measured.

    One that runs already with this share and these rules goes on: whoever says it again does not have it counted anew.
    """
    revision.bump(conn)
    adapter = find(conn, name)
    version = _among(adapter, canary.version)
    if adapter.live is None:
        raise Conflict(f"{name} has no live version to compare a canary with. Promote {canary.version} instead.")
    if adapter.live == canary.version:
        raise Conflict(f"{name}@{canary.version} is live already: every caller gets it.", param="version")
    running = adapter.canary
    since = canary.since
    if running is not None and replace(canary, since=running.since) == running:
        since = running.since
    values = {
        "canary": canary.version,
        "canary_percent": canary.percent,
        "canary_rules": json.dumps(asdict(canary.rules)),
        "canary_since": since,
        "updated_at": at,
    }
    conn.execute(sa.update(adapters).where(adapters.c.name == name).values(**values))
    _wish_anew(conn, version)
    record(conn, at, f"canary {canary.percent:g} %", version, by=by, why=why)


def end_canary(
    conn: sa.Connection,
    name: str,
    at: float,
    *,
    by: str,
    why: str = "",
    only: str | None = None,
    since: float | None = None,
) -> bool:
    """Give all callers of `name` the live version again; False where there is no canary, or another one.

    only, since: its version, and when it began: one that began anew is another one.
    """
    revision.bump(conn)  # first: of two gateways that end it, one sees that it has ended
    adapter = find(conn, name)
    running = adapter.canary
    if running is None or only not in (None, running.version) or since not in (None, running.since):
        return False
    conn.execute(sa.update(adapters).where(adapters.c.name == name).values(**_NO_CANARY, updated_at=at))
    record(conn, at, "canary ended", _among(adapter, running.version), by=by, why=why)
    return True


def set_ceilings(
    conn: sa.Connection, name: str, change: Mapping[str, int | None], at: float, *, by: str, why: str = ""
) -> None:
    """Limit all callers of `name` together; what `change` leaves out stays. NotFound."""
    revision.bump(conn)
    before = find(conn, name).ceilings
    after = replace(before, **change)
    if after == before:
        return
    conn.execute(sa.update(adapters).where(adapters.c.name == name).values(**asdict(after), updated_at=at))
    said = [f"{field} {value}" for field, value in asdict(after).items() if value is not None]
    note(conn, at, f"limits: {', '.join(said) or 'none of its own'}", name, by=by, why=why)


def ceilings(conn: sa.Connection) -> dict[str, Ceilings]:
    """Name → its own limits, of those adapters that have any."""
    columns = [adapters.c[name] for name in _CEILINGS]
    query = sa.select(adapters.c.name, *columns).where(sa.or_(*(column.is_not(None) for column in columns)))
    return {name: Ceilings(*values) for name, *values in conn.execute(query)}


def proof(conn: sa.Connection, engine_name: str) -> str | None:
    """What the engine that proved this version first said, as adapters/proof.py wrote it."""
    query = sa.select(versions.c.proof).where(versions.c.engine_name == engine_name, versions.c.proof.is_not(None))
    return conn.execute(query.limit(1)).scalar()


def set_proof(conn: sa.Connection, engine_name: str, text: str) -> bool:
    """Remember the first one for all other engines; False where there is one. Requests do not see it, so no bump."""
    mine = (versions.c.engine_name == engine_name) & versions.c.proof.is_(None)
    return conn.execute(sa.update(versions).where(mine).values(proof=text)).rowcount > 0


def with_proof(conn: sa.Connection, engine_names: Collection[str]) -> frozenset[str]:
    """Which of `engine_names` have a proof that an engine can be held to."""
    return _chunked(conn, versions, engine_names, versions.c.proof.is_not(None))


def lineage(conn: sa.Connection, engine_name: str) -> str | None:
    """How this version was made: JSON, written by training."""
    query = sa.select(versions.c.lineage).where(versions.c.engine_name == engine_name, versions.c.lineage.is_not(None))
    return conn.execute(query.limit(1)).scalar()


def set_wish(
    conn: sa.Connection, version: Version, wish: Wish, at: float, *, by: str = "operator", why: str = ""
) -> bool:
    """Remember what an operator asked of `version`; False where that is no news. Requests do not see it: no bump."""
    key = (versions.c.name == version.name) & (versions.c.version == version.version)
    done = conn.execute(sa.update(versions).where(key, versions.c.wish != wish).values(wish=wish))
    if done.rowcount:
        record(conn, at, _WISHED[wish], version, by=by, why=why)
    return bool(done.rowcount)


def _wish_anew(conn: sa.Connection, version: Version) -> None:
    """What answers callers is loaded, whatever was asked of it before; pinned stays pinned."""
    key = (versions.c.name == version.name) & (versions.c.version == version.version)
    mine = key & (versions.c.wish == Wish.UNLOADED)
    conn.execute(sa.update(versions).where(mine).values(wish=Wish.AUTO))


def set_damaged(conn: sa.Connection, engine_names: Collection[str], *, more: bool = True) -> None:
    """The files of exactly these versions are gone from the store; bumps only where that is news.

    more: False: of those that were there before; whoever says so may be looking at the wrong store.
    """
    before = conn.execute(sa.select(versions.c.engine_name).where(versions.c.damaged == sa.true())).scalars()
    back = set(before)
    gone = set(engine_names) if more else back.intersection(engine_names)
    if gone == back:
        return
    revision.bump(conn)
    for name, damaged in [(name, True) for name in gone - back] + [(name, False) for name in back - gone]:
        conn.execute(sa.update(versions).where(versions.c.engine_name == name).values(damaged=damaged))


def remove(
    conn: sa.Connection, name: str, version: str | None, at: float, *, by: str = "operator", why: str = ""
) -> tuple[Version, ...]:
    """Delete one version that is not live, or the whole adapter; returns what went. NotFound, Conflict."""
    revision.bump(conn)
    adapter = find(conn, name)
    gone = adapter.versions if version is None else (_among(adapter, version),)
    for each in gone:
        if version is not None and each.version == adapter.live:
            raise Conflict(
                f"{name}@{version} is live. Promote another version first, or remove the whole adapter.",
                param="version",
            )
        if version is not None and adapter.canary is not None and each.version == adapter.canary.version:
            raise Conflict(f"{name}@{version} is the canary. End the canary first.", param="version")
        record(conn, at, "removed", each, by=by, why=why)
    if version is None:
        conn.execute(sa.delete(adapters).where(adapters.c.name == name))
        return gone
    conn.execute(sa.delete(versions).where((versions.c.name == name) & (versions.c.version == version)))
    if adapter.previous == version:
        conn.execute(sa.update(adapters).where(adapters.c.name == name).values(previous=None, updated_at=at))
    return gone


def served(conn: sa.Connection) -> Iterator[Served]:
    """Every version that can answer, by name, in one query: what the gateway's snapshot is made from.

    Row by row (10,000 at once would be 4 MB that stay): use it up before the connection is closed.
    """
    query = (
        sa.select(
            versions.c.name,
            versions.c.version,
            versions.c.engine_name,
            versions.c.base,
            sa.func.coalesce(versions.c.version == adapters.c.live, sa.false()),
            versions.c.created_at,
            sa.case((versions.c.version == adapters.c.canary, adapters.c.canary_percent)),
            versions.c.thinking,
            *(adapters.c[name] for name in _CEILINGS),
        )
        .join(adapters, adapters.c.name == versions.c.name)
        .where(versions.c.damaged == sa.false())
        .order_by(versions.c.name)  # /v1/models is the same list in every gateway
        .execution_options(yield_per=500)
    )
    for name, version, engine_name, base, live, at, percent, thinking, *given in conn.execute(query):
        limits = _UNLIMITED if given == _NO_CEILINGS else Ceilings(*given)
        yield Served(name, version, engine_name, base, bool(live), at, percent, limits, thinking)


def wanted(conn: sa.Connection, limit: int) -> tuple[WantedVersion, ...]:
    """At most `limit` versions to keep loaded: first pinned ones, then what answers callers, then what did before."""
    live = versions.c.version == adapters.c.live
    canary = versions.c.version == adapters.c.canary
    pinned = versions.c.wish == Wish.LOADED
    order = sa.case((pinned, 0), (live | canary, 1), else_=2)
    query = (
        sa.select(versions.c.engine_name, versions.c.base, pinned)
        .join(adapters, adapters.c.name == versions.c.name)
        .where(versions.c.damaged == sa.false(), versions.c.wish != Wish.UNLOADED)
        .where(pinned | live | canary | (versions.c.version == adapters.c.previous))
        .order_by(order, adapters.c.updated_at.desc(), versions.c.engine_name)
        .limit(limit)
    )
    found = {name: WantedVersion(name, base, bool(pin)) for name, base, pin in reversed(conn.execute(query).all())}
    return tuple(reversed(found.values()))  # a:b and a-b share equal weights: the first of both counts


def pinned(conn: sa.Connection) -> frozenset[str]:
    """Engine names that operators asked to keep loaded."""
    return frozenset(conn.execute(sa.select(versions.c.engine_name).where(versions.c.wish == Wish.LOADED)).scalars())


def usual_base(conn: sa.Connection) -> str | None:
    """The base that most live versions were made for, else most of all; None where none was made for a known one."""
    live = (adapters.c.name == versions.c.name) & (adapters.c.live == versions.c.version)
    query = sa.select(versions.c.base).outerjoin(adapters, live).where(versions.c.base.is_not(None))
    most = sa.func.count(adapters.c.name).desc(), sa.func.count().desc()
    return conn.execute(query.group_by(versions.c.base).order_by(*most).limit(1)).scalar()


def without_part(conn: sa.Connection, engine_names: Collection[str]) -> frozenset[str]:
    """Which of `engine_names` the registry holds for nothing: neither live, canary, previous nor pinned."""
    part = (
        (versions.c.version == adapters.c.live)
        | (versions.c.version == adapters.c.previous)
        | (versions.c.version == adapters.c.canary)
        | (versions.c.wish == Wish.LOADED)
    )
    mine = versions.c.engine_name.in_(list(engine_names))
    query = sa.select(versions.c.engine_name).join(adapters, adapters.c.name == versions.c.name).where(mine, part)
    return frozenset(engine_names) - frozenset(conn.execute(query).scalars())


def known(conn: sa.Connection, engine_names: Collection[str] | None = None) -> frozenset[str]:
    """Which of `engine_names` (None: all there are) the registry holds."""
    return _chunked(conn, versions, engine_names)


def removed(conn: sa.Connection, engine_names: Collection[str]) -> frozenset[str]:
    """Which of `engine_names` were ours once and have been removed since."""
    return _chunked(conn, events, engine_names, events.c.what == "removed") - known(conn, engine_names)


def never_removed(conn: sa.Connection, engine_names: Collection[str]) -> frozenset[str]:
    """Which of `engine_names` are not known to have been removed."""
    return frozenset(engine_names) - removed(conn, engine_names)


def _chunked(
    conn: sa.Connection, table: sa.Table, engine_names: Collection[str] | None, *where: sa.ColumnElement[bool]
) -> frozenset[str]:
    query = sa.select(table.c.engine_name).where(*where)
    if engine_names is None:
        return frozenset(conn.execute(query).scalars())
    asked = sorted(engine_names)
    found: set[str] = set()
    for start in range(0, len(asked), 500):  # older SQLite binds at most 999 parameters
        found.update(conn.execute(query.where(table.c.engine_name.in_(asked[start : start + 500]))).scalars())
    return frozenset(found)


def _adapters(conn: sa.Connection, query: sa.Select[Any]) -> tuple[Adapter, ...]:
    rows = conn.execute(query).all()
    names = [row.name for row in rows]
    of: dict[str, list[sa.Row[Any]]] = {name: [] for name in names}
    for start in range(0, len(names), 500):
        mine = versions.c.name.in_(names[start : start + 500])
        for row in conn.execute(
            sa.select(*_READ).where(mine).order_by(versions.c.created_at.desc(), versions.c.version)
        ):
            of[row.name].append(row)
    return tuple(_adapter(row, of[row.name]) for row in rows)


def _adapter(row: sa.Row[Any], below: Sequence[sa.Row[Any]]) -> Adapter:
    canary = None
    if row.canary is not None:
        canary = Canary(row.canary, row.canary_percent, row.canary_since, _rules(row.canary_rules))
    made = tuple(_version(each, row.live, row.previous, row.canary) for each in below)
    limits = Ceilings(*(row._mapping[name] for name in _CEILINGS))
    return Adapter(row.name, row.live, row.previous, made, row.created_at, row.updated_at, canary, row.owner, limits)


def _rules(text: str | None) -> Rules:
    """Of a row that a newer or an older program may have written: what it does not say is as it is by default."""
    given = json.loads(text or "{}")
    return Rules(**{field.name: given[field.name] for field in fields(Rules) if field.name in given})


def _version(row: sa.Row[Any], live: str | None, previous: str | None, canary: str | None) -> Version:
    state = VersionState.READY
    if row.damaged:
        state = VersionState.DAMAGED
    elif row.version == live:
        state = VersionState.LIVE
    elif row.version == canary:
        state = VersionState.CANARY
    elif row.version == previous:
        state = VersionState.PREVIOUS
    values = {key: value for key, value in row._mapping.items() if key not in ("wish", "damaged")}
    return Version(**values, state=state, pinned=row.wish == Wish.LOADED)
