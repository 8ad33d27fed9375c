"""/admin/v1/jobs: create from a recipe, list, show, cancel, pause, resume, prioritise; events, checkpoints, log."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi import Path as InPath
from starlette.responses import JSONResponse, StreamingResponse

from adapters.errors import InvalidRequest, NotFound, ServiceError
from gateway.admin.access import Admin, admin, may_register, reaches
from gateway.admin.engine import everything
from gateway.admin.job_schemas import (
    CancelChosen,
    CheckpointView,
    EventPaging,
    JobCreate,
    JobEventView,
    JobPaging,
    JobView,
    LogAsked,
    LogView,
    PriorityChosen,
)
from gateway.admin.schemas import JOB_ID, Listed
from gateway.following import Following, News
from gateway.render import render
from training.errors import JobNotFound
from training.places import Places
from training.recipe import FILE_ID, Recipe, parse
from training.service import JobService
from training.types import Job, JobEvent

RETRY_MS = 2000
Id = Annotated[str, InPath(pattern=JOB_ID)]


class JobRoutes:
    def __init__(self, jobs: JobService, following: Following, places: Places) -> None:
        self._jobs = jobs
        self._following = following
        self._places = places

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1/jobs", dependencies=[Depends(admin)], tags=["jobs"])
        router.add_api_route("", self.create, methods=["POST"], status_code=201)
        router.add_api_route("", self.list, methods=["GET"])
        own = [Depends(self.within_reach)]
        router.add_api_route("/{job}", self.show, methods=["GET"], dependencies=own)
        router.add_api_route("/{job}/cancel", self.cancel, methods=["POST"], dependencies=own)
        router.add_api_route("/{job}/pause", self.pause, methods=["POST"], dependencies=own)
        router.add_api_route("/{job}/resume", self.resume, methods=["POST"], dependencies=own)
        router.add_api_route("/{job}/priority", self.prioritise, methods=["POST"], dependencies=own)
        listed: Any = Listed[JobEventView]
        router.add_api_route("/{job}/events", self.events, methods=["GET"], response_model=listed, dependencies=own)
        router.add_api_route("/{job}/checkpoints", self.checkpoints, methods=["GET"], dependencies=own)
        router.add_api_route("/{job}/log", self.log, methods=["GET"], dependencies=own)
        return router

    async def within_reach(self, job: Id, caller: Admin) -> None:
        """A key with a list of models sees jobs for these alone: others do not exist for it."""
        if caller.models is not None and not reaches(caller, (await self._jobs.show(job)).name):
            raise JobNotFound(f"There is no job {job} for this key: it may use some models only.", param="job")

    async def create(self, body: JobCreate, caller: Admin) -> JobView:
        """A job from a recipe document (docs/recipes.md). Files are named by their id, or by a path on this machine."""
        recipe = parse(body.recipe)
        may_register(caller, recipe.name)
        if recipe.pause_engine:
            everything(caller)
        _check_paths(recipe)
        return view(await self._jobs.create(recipe.name, recipe.document(), priority=body.priority))

    async def list(self, paging: Annotated[JobPaging, Query()], caller: Admin) -> Listed[JobView]:
        """Everybody's jobs, the newest first."""
        page = await self._jobs.list(
            owner=None, after=paging.after, limit=paging.limit, states=paging.state, names=caller.models
        )
        return Listed[JobView](data=[view(job) for job in page.jobs], has_more=page.has_more)

    async def show(self, job: Id) -> JobView:
        """One job, its newest figures, and what became of it."""
        return view(await self._jobs.show(job))

    async def cancel(self, job: Id, body: Annotated[CancelChosen, Body(default_factory=CancelChosen)]) -> JobView:
        """End a job; `keep` leaves what was trained so far in the job's folder."""
        return view(await self._jobs.cancel(job, keep=body.keep))

    async def pause(self, job: Id) -> JobView:
        """Stop a job at a whole checkpoint, to go on from there."""
        return view(await self._jobs.pause(job))

    async def resume(self, job: Id) -> JobView:
        """Let a paused job queue again."""
        return view(await self._jobs.resume(job))

    async def prioritise(self, job: Id, body: PriorityChosen) -> JobView:
        """Larger is sooner, among the jobs that wait."""
        return view(await self._jobs.prioritise(job, body.priority))

    async def events(
        self, job: Id, paging: Annotated[EventPaging, Query()], request: Request
    ) -> Listed[JobEventView] | StreamingResponse | JSONResponse:
        """What happened behind the event `after`, the oldest first; with `stream` as server-sent events to the end.

        A stream begins behind the header Last-Event-ID, and its last event is `end`, with the job.
        """
        if not paging.stream:
            found = await self._jobs.events(job, after=paging.after, limit=paging.limit + 1)
            views = [event_view(each) for each in found[: paging.limit]]
            return Listed[JobEventView](data=views, has_more=len(found) > paging.limit)
        news = await self._following.follow(job, None, _last(request) or paging.after)
        return StreamingResponse(_written(news), headers={"cache-control": "no-store"}, media_type="text/event-stream")

    async def checkpoints(self, job: Id) -> Listed[CheckpointView]:
        """Every whole checkpoint that is on disk, the newest first."""
        found = await self._jobs.checkpoints(job)
        views = [
            CheckpointView(
                step=each.step, at=int(each.at), folder=each.folder, metrics=dict(each.metrics), version=each.version
            )
            for each in found
        ]
        return Listed[CheckpointView](data=views, has_more=False)

    async def log(self, job: Id, asked: Annotated[LogAsked, Query()]) -> LogView:
        """The end of what the trainer printed; with `offset` what it printed from there on."""
        await self._jobs.show(job)
        path = self._places.job(job) / "run.log"
        try:
            start, raw, size = await asyncio.to_thread(_tail, path, asked.bytes, asked.offset)
        except FileNotFoundError:
            raise NotFound(
                f"Job {job} has no log here: its trainer has not been started, or its worker is on another machine."
            ) from None
        text = raw.decode("utf-8", "replace")
        return LogView(text=text, offset=start, next_offset=start + len(raw), size_bytes=size)


def view(job: Job) -> JobView:
    return JobView(
        id=job.id,
        name=job.name,
        owner=job.owner,
        state=job.state.value,
        phase=job.phase.value if job.phase else None,
        wish=job.wish.value if job.wish else None,
        priority=job.priority,
        created_at=int(job.created_at),
        started_at=_moment(job.started_at),
        finished_at=_moment(job.finished_at),
        attempts=job.attempts,
        worker=job.worker,
        seen_at=_moment(job.seen_at),
        progress=asdict(job.progress) if job.progress else None,
        outcome=job.outcome.value if job.outcome else None,
        result=_plain(job.result),
        error=asdict(job.error) if job.error else None,
        recipe=dict(job.recipe),
        settled=_plain(job.settled),
    )


def event_view(event: JobEvent) -> JobEventView:
    return JobEventView(
        id=event.id,
        at=int(event.at),
        level=event.level,
        kind=event.kind,
        message=event.message,
        data=_plain(event.data),
    )


async def _written(news: News) -> AsyncIterator[str]:
    """Server-sent events: ids to go on from, a comment where nothing happens, and never a quiet end."""
    yield f"retry: {RETRY_MS}\n\n"
    try:
        async for each in news:
            if each is None:
                yield ": heartbeat\n\n"
            elif isinstance(each, JobEvent):
                yield f"id: {each.id}\nevent: {each.kind}\ndata: {event_view(each).model_dump_json()}\n\n"
            else:
                yield f"event: end\ndata: {view(each).model_dump_json()}\n\n"
    except ServiceError as error:
        body = json.dumps(json.loads(render(error)[2]))
        yield f"event: error\ndata: {body}\n\n"


def _last(request: Request) -> int:
    """The event that a client saw last, 0 where it says nothing that could be one."""
    given = request.headers.get("last-event-id", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) <= 15 else 0


def _check_paths(recipe: Recipe) -> None:
    """A path counts from nowhere here: the command line made its own absolute."""
    named = {f"data.train.{place}.file": each.file for place, each in enumerate(recipe.data.train)}
    if isinstance(recipe.data.validation, str):
        named["data.validation"] = recipe.data.validation
    if recipe.gate is not None and recipe.gate.no_regression_on is not None:
        named["gate.no_regression_on"] = recipe.gate.no_regression_on
    for param, name in named.items():
        if not FILE_ID.fullmatch(name) and not os.path.isabs(name):
            raise InvalidRequest(
                f"`{param}` must be a file's id, or an absolute path on the gateway's machine. "
                "`loragate train run` makes it one.",
                param=param,
            )


def _tail(path: Path, amount: int, offset: int | None) -> tuple[int, bytes, int]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - amount) if offset is None else min(offset, size)
        file.seek(start)
        return start, file.read(amount), size


def _moment(at: float | None) -> int | None:
    return int(at) if at is not None else None


def _plain(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(document) if document is not None else None
