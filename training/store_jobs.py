"""All SQL of jobs: the queue, events and checkpoints, as functions of a Connection; rows in, frozen types out.

A worker takes a job in one transaction, so two never have the same one. Whoever decides by what a job is, and then
changes it, holds its row meanwhile (PostgreSQL; SQLite has one writer). Must not know files or processes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from adapters import revision
from adapters.errors import Conflict
from adapters.schema import metadata
from training.errors import JobNotFound
from training.types import Checkpoint, Job, JobEvent, JobState, Outcome, Phase, Problem, Progress, Wish

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("phase", sa.Text),
    sa.Column("wish", sa.Text),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("request", sa.Text),
    sa.Column("settled", sa.Text),
    sa.Column("progress", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("worker", sa.Text),
    sa.Column("seen_at", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
)
events = sa.Table(
    "job_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.Text, nullable=False, index=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.Text),
)
checkpoints = sa.Table(
    "job_checkpoints",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
)
_JSON = ("recipe", "request", "settled", "progress", "result", "error")


def add(conn: sa.Connection, job: Job) -> None:
    """A new job."""
    conn.execute(sa.insert(jobs).values(_row(job)))


def find(conn: sa.Connection, job_id: str, owner: str | None = None, *, hold: bool = False) -> Job:
    """One job; JobNotFound, also where it is another owner's than `owner` (None: whoever's).

    hold: nobody else changes it until this transaction ends.
    """
    query = sa.select(jobs).where(jobs.c.id == job_id)
    if hold:
        query = query.with_for_update()
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    row = conn.execute(query).one_or_none()
    if row is None:
        raise JobNotFound(f"There is no job {job_id[:64]}. `loragate jobs list` shows all.", param="fine_tuning_job_id")
    return _job(row._mapping)


def page(
    conn: sa.Connection,
    *,
    owner: str | None,
    after: str | None,
    limit: int,
    states: Collection[JobState] = (),
    names: Collection[str] | None = None,
) -> tuple[tuple[Job, ...], bool]:
    """At most `limit` jobs, the newest first, older than the job `after`, and whether there are more. JobNotFound.

    names: only those of adapters of these names.
    """
    query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if states:
        query = query.where(jobs.c.state.in_(sorted(states)))
    if names is not None:
        query = query.where(jobs.c.name.in_(sorted(names)))
    if after is not None:
        last = find(conn, after, owner)
        query = query.where(sa.tuple_(jobs.c.created_at, jobs.c.id) < sa.tuple_(last.created_at, last.id))
    found = [_job(row._mapping) for row in conn.execute(query)]
    return tuple(found[:limit]), len(found) > limit


def counts(conn: sa.Connection) -> dict[str, int]:
    """state → how many jobs."""
    query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
    return {str(row[0]): int(row[1]) for row in conn.execute(query)}


def unfinished(conn: sa.Connection, owner: str) -> int:
    """How many jobs of `owner` have not ended."""
    final = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state.not_in(final))
    return int(conn.execute(query).scalar_one())


def take(conn: sa.Connection, state: JobState, worker: str, now: float) -> Job | None:
    """The first job in `state` that nobody has becomes `worker`'s: the highest priority, then the oldest."""
    revision.hold(conn)  # PostgreSQL: no two workers look at once
    order = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
    query = sa.select(jobs.c.id).where(jobs.c.state == state, jobs.c.worker.is_(None)).order_by(*order).limit(1)
    # Held: one that is cancelled in this moment is not taken. The next look finds another.
    found = conn.execute(query.with_for_update()).scalar_one_or_none()
    if found is None:
        return None
    conn.execute(sa.update(jobs).where(jobs.c.id == found).values(worker=worker, seen_at=now))
    return find(conn, found)


def held(conn: sa.Connection, worker: str) -> tuple[Job, ...]:
    """The jobs that `worker` has, oldest first: after a crash, what it has to see to."""
    query = sa.select(jobs).where(jobs.c.worker == worker).order_by(jobs.c.created_at, jobs.c.id)
    return tuple(_job(row._mapping) for row in conn.execute(query))


def change(conn: sa.Connection, job_id: str, *, only: Collection[JobState] = (), **fields: Any) -> Job:
    """Set some fields of a job; Conflict where it is in none of the states `only`. JobNotFound."""
    job = find(conn, job_id, hold=True)
    if only and job.state not in only:
        raise Conflict(f"Job {job_id} is {job.state.value}. `loragate jobs show {job_id}` says more.")
    conn.execute(sa.update(jobs).where(jobs.c.id == job_id).values(_encoded(fields)))
    return find(conn, job_id)


def seen(conn: sa.Connection, worker: str, now: float) -> dict[str, Wish | None]:
    """`worker` says that it is there; returns its jobs and what is wished of each."""
    conn.execute(sa.update(jobs).where(jobs.c.worker == worker).values(seen_at=now))
    query = sa.select(jobs.c.id, jobs.c.wish).where(jobs.c.worker == worker)
    return {job_id: Wish(wish) if wish else None for job_id, wish in conn.execute(query)}


def tell(
    conn: sa.Connection,
    job_id: str,
    at: float,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Add an event."""
    row = {"job": job_id, "at": at, "level": level, "kind": kind, "message": message}
    conn.execute(sa.insert(events).values(**row, data=json.dumps(data) if data is not None else None))


def told(conn: sa.Connection, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[JobEvent, ...]:
    """At most `limit` events of a job behind the event `after`, oldest first."""
    query = sa.select(events).where(events.c.job == job_id, events.c.id > after).order_by(events.c.id).limit(limit)
    return tuple(_event(row._mapping) for row in conn.execute(query))


def told_last(conn: sa.Connection, job_id: str, *, before: int | None, limit: int) -> tuple[tuple[JobEvent, ...], bool]:
    """At most `limit` events of a job older than the event `before`, newest first, and whether there are more."""
    query = sa.select(events).where(events.c.job == job_id).order_by(events.c.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(events.c.id < before)
    found = [_event(row._mapping) for row in conn.execute(query)]
    return tuple(found[:limit]), len(found) > limit


def told_steps(conn: sa.Connection, job_id: str) -> int:
    """The last step whose figures were told; 0 for none."""
    query = sa.select(events.c.data).where(events.c.job == job_id, events.c.kind == "metrics")
    data = conn.execute(query.order_by(events.c.id.desc()).limit(1)).scalar_one_or_none()
    return int(json.loads(data).get("step", 0)) if data else 0


def told_findings(conn: sa.Connection, job_id: str) -> frozenset[str]:
    """Which kinds of findings (training/run/findings.py) were told."""
    query = sa.select(events.c.data).where(events.c.job == job_id, events.c.kind == "message")
    found = (json.loads(data) for data in conn.execute(query.where(events.c.data.is_not(None))).scalars())
    return frozenset(str(data["finding"]) for data in found if "finding" in data)


def keep_checkpoint(conn: sa.Connection, made: Checkpoint) -> None:
    """Add a checkpoint, or say anew what is known of it."""
    conn.execute(sa.delete(checkpoints).where(checkpoints.c.job == made.job, checkpoints.c.step == made.step))
    conn.execute(sa.insert(checkpoints).values(asdict(made) | {"metrics": json.dumps(dict(made.metrics))}))


def forget_checkpoint(conn: sa.Connection, job_id: str, step: int) -> None:
    """It is not on disk any more."""
    conn.execute(sa.delete(checkpoints).where(checkpoints.c.job == job_id, checkpoints.c.step == step))


def list_checkpoints(conn: sa.Connection, job_id: str) -> tuple[Checkpoint, ...]:
    """All checkpoints of a job, newest first."""
    query = sa.select(checkpoints).where(checkpoints.c.job == job_id).order_by(checkpoints.c.step.desc())
    return tuple(Checkpoint(**dict(row._mapping) | {"metrics": json.loads(row.metrics)}) for row in conn.execute(query))


def _row(job: Job) -> dict[str, Any]:
    return _encoded({column.name: getattr(job, column.name) for column in jobs.columns})


def _encoded(fields: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(fields)
    for name in _JSON:
        value = row.get(name)
        if isinstance(value, Progress | Problem):
            value = asdict(value)
        if value is not None:
            row[name] = json.dumps(value, ensure_ascii=False, default=dict)
    return row


def _job(row: Mapping[Any, Any]) -> Job:
    read: dict[str, Any] = dict(row)
    for name in _JSON:
        if read[name] is not None:
            read[name] = json.loads(read[name])
    made = {"state": JobState, "phase": Phase, "wish": Wish, "outcome": Outcome}
    for name, kind in made.items():
        read[name] = kind(read[name]) if read[name] is not None else None
    read["progress"] = Progress(**read["progress"]) if read["progress"] is not None else None
    read["error"] = Problem(**read["error"]) if read["error"] is not None else None
    return Job(**read)


def _event(row: Mapping[Any, Any]) -> JobEvent:
    return JobEvent(**dict(row) | {"data": json.loads(row["data"]) if row["data"] is not None else None})
