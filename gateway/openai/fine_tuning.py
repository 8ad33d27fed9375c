"""/v1/fine_tuning/jobs: OpenAI's jobs over the queue of training/service.py, each key seeing its own.

Must not know how a job is carried out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from adapters.errors import Conflict, InvalidRequest, ServiceError
from adapters.names import check_public_name
from gateway.errors import (
    FineTuneNotFound,
    JobStateRefused,
    ModelNotAvailable,
    ModelNotFound,
    QuotaExceeded,
    UnknownRoute,
    UpstreamUnavailable,
)
from gateway.following import Following, News
from gateway.openai import asked as asking
from gateway.openai import objects
from gateway.openai.asked import JobAsked
from gateway.openai.callers import Callers, sees
from gateway.openai.files import Answer
from gateway.openai.query import choice, text, whole
from gateway.settings import Training
from gateway.v1 import wire
from gateway.v1.routing import resolve
from gateway.v1.snapshot import Key, Snapshot
from training import recipe as recipes
from training.errors import DataRejected, FileMissing, JobNotFound
from training.files import Files
from training.service import JobService
from training.types import FileStatus, Job, JobEvent, JobState

PATH = "/v1/fine_tuning/jobs"
MAX_NAME = 128  # of a public name
CHECKPOINT_ROOM = len(":ckpt-step-9999999")
ID_LENGTH = 8  # of a job's id, in its model's name
MAX_DEPTH = 16
ELSEWHERE = {
    "/v1/fine_tuning/checkpoints/{rest:path}": "Permissions of checkpoints are not kept here: every key that may use "
    "the model may use its checkpoints.",
    "/v1/fine_tuning/alpha/{rest:path}": "Graders belong to reinforcement fine-tuning, which is not done here.",
}


class FineTuningRoutes:
    """snapshot: what requests see now. random_bytes: for seeds that nobody gave."""

    def __init__(
        self,
        callers: Callers,
        jobs: JobService,
        files: Files,
        following: Following,
        settings: Training,
        *,
        snapshot: Callable[[], Snapshot],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._callers = callers
        self._jobs = jobs
        self._files = files
        self._following = following
        self._settings = settings
        self._snapshot = snapshot
        self._random_bytes = random_bytes

    def router(self, answer: Answer, new_id: Callable[[], str]) -> APIRouter:
        router = APIRouter()

        async def create(request: Request) -> Response:
            key = self._callers.training(request)
            return answer(200, self._shown(await self._create(key, await request.body())))

        async def listing(request: Request) -> Response:
            return answer(200, wire.encode(await self._list(request)))

        async def one(job_id: str, request: Request) -> Response:
            return answer(200, self._shown(await self._job(request, job_id)))

        async def change(job_id: str, verb: str, request: Request) -> Response:
            return answer(200, self._shown(await self._change(request, job_id, verb)))

        async def events(job_id: str, request: Request) -> Response:
            if choice(request.query_params, "stream", ("false", "true")) == "true":
                return await self._stream(request, job_id, new_id())
            return answer(200, wire.encode(await self._events(request, job_id)))

        async def checkpoints(job_id: str, request: Request) -> Response:
            return answer(200, wire.encode(await self._checkpoints(request, job_id)))

        router.add_api_route(PATH, create, methods=["POST"], response_model=None)
        router.add_api_route(PATH, listing, methods=["GET"], response_model=None)
        router.add_api_route(PATH + "/{job_id}", one, methods=["GET"], response_model=None)
        router.add_api_route(PATH + "/{job_id}/events", events, methods=["GET"], response_model=None)
        router.add_api_route(PATH + "/{job_id}/checkpoints", checkpoints, methods=["GET"], response_model=None)
        router.add_api_route(PATH + "/{job_id}/{verb}", change, methods=["POST"], response_model=None)
        for path, why in ELSEWHERE.items():
            router.add_api_route(path, _not_here(why), methods=["GET", "POST", "DELETE"], response_model=None)
        return router

    async def _create(self, key: Key, body: bytes) -> Job:
        asked = asking.read(wire.parse(body, MAX_DEPTH))
        base = self._base(key, asked)
        await self._check_files(key, asked)
        job_id = self._jobs.new_id()
        name = self._name(base, asked, job_id)
        seed = asked.seed if asked.seed is not None else int.from_bytes(self._random_bytes(4), "big") >> 1
        document = recipes.parse(asking.recipe(asked, name, seed)).document()
        echoed = asking.echoed(asked, seed)
        try:
            return await self._jobs.create(name, document, owner=key.id, request=echoed, job_id=job_id)
        except Conflict as error:
            raise QuotaExceeded(error.message, retryable=False) from None

    def _base(self, key: Key, asked: JobAsked) -> str:
        """The served base, where the job asks for it."""
        snapshot, model = self._snapshot(), asked.model
        if snapshot.base is None:
            raise UpstreamUnavailable("No engine is ready. GET /readyz says why.", retry_after_s=5)
        if model in self._settings.base_names:
            return snapshot.base
        try:
            target = resolve(snapshot, key, model)
        except ModelNotFound:
            raise ModelNotAvailable(
                f"Model {model[:128]} is not available for fine-tuning or does not exist. Use {snapshot.base}.",
                param="model",
            ) from None
        if target.version is not None:
            raise ModelNotAvailable(
                f"Model {model[:128]} is not available for fine-tuning: it is fine-tuned already, and training goes on "
                f"from none. Use {snapshot.base}.",
                param="model",
            )
        return snapshot.base

    async def _check_files(self, key: Key, asked: JobAsked) -> None:
        given = {"training_file": asked.training_file, "validation_file": asked.validation_file}
        for param, file_id in given.items():
            if file_id is None:
                continue
            try:
                found = await self._files.show(file_id, sees(key))
            except FileMissing:
                raise DataRejected(f"invalid {param}: {file_id[:64]}", param=param) from None
            if found.purpose != "fine-tune" or found.status is FileStatus.ERROR:
                raise DataRejected(
                    f"invalid {param}: {file_id[:64]} has the purpose {found.purpose} and the status "
                    f"{found.status.value}. Upload it with the purpose fine-tune.",
                    param=param,
                )
        if asked.training_file == asked.validation_file:
            raise DataRejected(
                "The validation file is the training file: nothing would be learned from it. Leave it out.",
                param="validation_file",
            )

    def _name(self, base: str, asked: JobAsked, job_id: str) -> str:
        """ft:<base>:<org>:<suffix>:<id>, with room for a checkpoint's part; a long base is cut, a suffix is not."""
        rest = f"{self._settings.organization}:{asking.slug(asked.suffix or '')}:{job_id[-ID_LENGTH:]}"
        room = MAX_NAME - CHECKPOINT_ROOM - len("ft::") - len(rest)
        return check_public_name(f"ft:{asking.slug(base.rpartition('/')[2])[: max(room, 0)]}:{rest}")

    async def _list(self, request: Request) -> dict[str, Any]:
        owner, query = sees(self._callers.training(request)), request.query_params
        after, limit = text(query, "after"), whole(query, "limit", 20, 1, 100)
        wanted = {name[9:-1]: value for name, value in query.items() if name[:9] == "metadata[" and name[-1] == "]"}
        found: list[Job] = []
        has_more = True
        while has_more and len(found) <= limit:  # the filter is for people's own few jobs: no index for it
            try:
                page = await self._jobs.list(owner=owner, after=after, limit=max(limit, 100 if wanted else 0) + 1)
            except JobNotFound:
                raise InvalidRequest("`after` is no job of this key.", param="after") from None
            found += [job for job in page.jobs if _has(job, wanted)]
            has_more, after = page.has_more, page.jobs[-1].id if page.jobs else None
        shown = [objects.job(job, self._settings.organization) for job in found[:limit]]
        return objects.page(shown, len(found) > limit)

    async def _job(self, request: Request, job_id: str) -> Job:
        try:
            return await self._jobs.show(job_id, sees(self._callers.training(request)))
        except JobNotFound:
            raise _no_job(job_id) from None

    async def _change(self, request: Request, job_id: str, verb: str) -> Job:
        verbs = {"cancel": self._jobs.cancel, "pause": self._jobs.pause, "resume": self._jobs.resume}
        owner = sees(self._callers.training(request))
        if verb not in verbs:
            raise UnknownRoute("This URL is not served here. A job can be cancelled, paused and resumed.")
        try:
            return await verbs[verb](job_id, owner)
        except JobNotFound:
            raise _no_job(job_id) from None
        except Conflict:
            job = await self._jobs.show(job_id, owner)
            raise _refused(job, verb) from None

    async def _events(self, request: Request, job_id: str) -> dict[str, Any]:
        job, query = await self._job(request, job_id), request.query_params
        before, limit = _event_id(text(query, "after")), whole(query, "limit", 20, 1, 1000)
        found, has_more = await self._jobs.history(job.id, before=before, limit=limit)
        return objects.page([objects.event(each) for each in found], has_more)

    async def _stream(self, request: Request, job_id: str, request_id: str) -> Response:
        job = await self._job(request, job_id)
        last = request.headers.get("last-event-id") or text(request.query_params, "after")
        news = await self._following.follow(job.id, job.owner, _event_id(last) or 0)
        headers = {"x-request-id": request_id, "cache-control": "no-store"}
        return StreamingResponse(_written(news), headers=headers, media_type="text/event-stream")

    async def _checkpoints(self, request: Request, job_id: str) -> dict[str, Any]:
        job, query = await self._job(request, job_id), request.query_params
        after, limit = text(query, "after"), whole(query, "limit", 10, 1, 1000)
        found = list(await self._jobs.checkpoints(job.id))
        if after is not None:
            ids = [objects.checkpoint_id(each) for each in found]
            if after not in ids:
                raise InvalidRequest("`after` is no checkpoint of this job.", param="after")
            found = found[ids.index(after) + 1 :]
        shown = [objects.checkpoint(each, job.name) for each in found[:limit]]
        return objects.page(shown, len(found) > limit)

    def _shown(self, job: Job) -> bytes:
        return wire.encode(objects.job(job, self._settings.organization))


async def _written(news: News) -> AsyncIterator[str]:
    """As OpenAI's older streams of events: one object each, `[DONE]` at the end, never a quiet one."""
    try:
        async for each in news:
            if each is None:
                yield ": ping\n\n"
            elif isinstance(each, JobEvent):
                shown = json.dumps(objects.event(each), ensure_ascii=False)
                yield f"id: {objects.EVENT}{each.id}\ndata: {shown}\n\n"
            else:
                yield "data: [DONE]\n\n"
    except ServiceError as error:
        yield f"data: {wire.openai_error(error).decode()}\n\n"


def _refused(job: Job, verb: str) -> JobStateRefused:
    if job.is_final:
        ended = "been cancelled" if job.state is JobState.CANCELLED else job.state.value
        return JobStateRefused(f"Job has already {ended}: {job.id}", retryable=False)
    done = {"cancel": "cancelled", "pause": "paused", "resume": "resumed"}[verb]
    return JobStateRefused(f"Job {job.id} cannot be {done}: it is {job.state.value}.", retryable=False)


def _not_here(why: str) -> Callable[[], Any]:
    async def refuse() -> Response:
        raise UnknownRoute(why)

    return refuse


def _has(job: Job, wanted: dict[str, str]) -> bool:
    metadata = (job.request or {}).get("metadata") or {}
    return all(metadata.get(name) == value for name, value in wanted.items())


def _event_id(given: str | None) -> int | None:
    digits = (given or "").removeprefix(objects.EVENT)
    if given is None:
        return None
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise InvalidRequest("`after` is no event of this job.", param="after")
    return int(digits)


def _no_job(job_id: str) -> FineTuneNotFound:
    return FineTuneNotFound(f"Could not find fine tune: {job_id[:64]}", param="fine_tune_id")
