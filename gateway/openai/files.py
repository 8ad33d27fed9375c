"""/v1/files: data sets for fine-tuning, streamed to disk, checked on arrival, seen by the key that sent them.

Must not know jobs, or where bytes lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from adapters.errors import InvalidRequest
from gateway.errors import RateLimited
from gateway.openai import objects
from gateway.openai.callers import Callers, sees
from gateway.openai.forms import MAX_FORM_BYTES, Form
from gateway.openai.query import choice, text, whole
from gateway.v1 import wire
from training.errors import DataRejected
from training.files import Files
from training.types import FileStatus

PATH = "/v1/files"
STREAMED = {PATH.encode(): MAX_FORM_BYTES}  # for the connection: this body is read as it comes
PURPOSE = "fine-tune"
UPLOADS_MAX = 4  # of one key at once
EXPIRES_S = (3600, 30 * 86_400)

Answer = Callable[[int, bytes], Response]  # status, JSON body
Check = Callable[[Path], Awaitable[str | None]]  # why a file is refused


class FileRoutes:
    """check: what speaks against a file that has arrived. idle_timeout_s: an upload may be silent for so long."""

    def __init__(self, callers: Callers, files: Files, check: Check, *, idle_timeout_s: float) -> None:
        self._callers = callers
        self._files = files
        self._check = check
        self._idle_timeout_s = idle_timeout_s
        self._uploading: Counter[str] = Counter()  # key id → uploads now

    def router(self, answer: Answer, new_id: Callable[[], str]) -> APIRouter:
        router = APIRouter()

        async def create(request: Request) -> Response:
            try:
                return answer(200, await self._create(request))
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it

        async def listing(request: Request) -> Response:
            return answer(200, await self._list(request))

        async def one(file_id: str, request: Request) -> Response:
            found = await self._files.show(file_id, sees(self._callers.training(request)))
            return answer(200, wire.encode(objects.file(found)))

        async def content(file_id: str, request: Request) -> Response:
            found = await self._files.show(file_id, sees(self._callers.training(request)))
            headers = {"x-request-id": new_id()}
            path = self._files.path(found.id)
            return FileResponse(path, headers=headers, media_type="application/octet-stream", filename=found.filename)

        async def delete(file_id: str, request: Request) -> Response:
            await self._files.remove(file_id, sees(self._callers.training(request)))
            return answer(200, wire.encode({"id": file_id, "object": "file", "deleted": True}))

        router.add_api_route(PATH, create, methods=["POST"], response_model=None)
        router.add_api_route(PATH, listing, methods=["GET"], response_model=None)
        router.add_api_route(PATH + "/{file_id}", one, methods=["GET"], response_model=None)
        router.add_api_route(PATH + "/{file_id}", delete, methods=["DELETE"], response_model=None)
        router.add_api_route(PATH + "/{file_id}/content", content, methods=["GET"], response_model=None)
        return router

    async def _create(self, request: Request) -> bytes:
        key = self._callers.training(request)
        if self._uploading[key.id] >= UPLOADS_MAX:
            raise RateLimited(f"This key sends {UPLOADS_MAX} files already. Wait for one of them.", retry_after_s=5)
        self._uploading[key.id] += 1
        try:
            async with AsyncExitStack() as stack:
                form = Form(self._files, key.id, stack, early=_early, idle_timeout_s=self._idle_timeout_s)
                incoming = await form.read(request)
                incoming.purpose = _purpose(form.fields)
                expires_after_s = _expiry(form.fields)
                kept = await self._files.keep(incoming, expires_after_s)
        finally:
            self._uploading[key.id] -= 1
            self._uploading += Counter()  # drops what is zero
        try:
            problem = await self._check(self._files.path(kept.id))
        except BaseException:
            await self._files.remove(kept.id)
            raise
        if problem is not None:
            await self._files.remove(kept.id)
            raise DataRejected(problem, param="file")
        await self._files.set_status(kept.id, FileStatus.PROCESSED)
        return wire.encode(objects.file(await self._files.show(kept.id)))

    async def _list(self, request: Request) -> bytes:
        key, query = self._callers.training(request), request.query_params
        found, has_more = await self._files.list(
            owner=sees(key),
            purpose=text(query, "purpose"),
            after=text(query, "after"),
            limit=whole(query, "limit", 10_000, 1, 10_000),
            newest_first=choice(query, "order", ("desc", "asc")) == "desc",
        )
        return wire.encode(objects.page([objects.file(each) for each in found], has_more))


def _early(fields: Mapping[str, str]) -> None:
    """Before half a gigabyte is sent for nothing."""
    if "purpose" in fields:
        _purpose(fields)
    if len(fields) == 3:
        _expiry(fields)


def _purpose(fields: Mapping[str, str]) -> str:
    given = fields.get("purpose")
    if given is None:
        raise InvalidRequest("'purpose' is a required property", param="purpose")
    if given != PURPOSE:
        raise InvalidRequest(f"'{given[:64]}' is not one of ['{PURPOSE}'] - 'purpose'", param="purpose")
    return given


def _expiry(fields: Mapping[str, str]) -> float | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    low, high = EXPIRES_S
    if anchor != "created_at":
        raise InvalidRequest("`expires_after[anchor]` must be created_at.", param="expires_after[anchor]")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or not low <= int(seconds[:20]) <= high:
        raise InvalidRequest(
            f"`expires_after[seconds]` must be a whole number from {low} to {high}.", param="expires_after[seconds]"
        )
    return float(seconds)
