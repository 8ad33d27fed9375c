"""An adapter sent as multipart/form-data: streamed to disk as it comes, then the route sees ordinary JSON.

Also what the routes use to get at any source, and the list of what is on its way in. Must not know the registry.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, Depends
from fastapi.exceptions import RequestValidationError
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import InvalidRequest
from adapters.names import check_public_name
from adapters.sources.arrivals import MAX_ARCHIVE_BYTES, Arrivals, Arrived, Upload
from gateway.admin import problems
from gateway.admin.access import CALLER, Admin, admin, may_register, reaches
from gateway.admin.schemas import AdapterRegister, IntakeView, Listed
from gateway.errors import Forbidden, RequestTimeout, RequestTooLarge
from gateway.keys import Key

REGISTER, CHECK = "/admin/v1/adapters", "/admin/v1/adapters/check"
UPLOADED = "loragate.uploaded"  # where an upload is left for its route: what arrived, and what to close then
MAX_FIELD_BYTES = 16 * 1024
MAX_PARTS = 16
IDLE_TIMEOUT_S = 30.0  # without a byte; there is no deadline for all of it


def is_upload(scope: Scope) -> bool:
    """Whether a request's body is streamed: an adapter as multipart, to a route that takes one."""
    return scope["method"] == "POST" and scope["path"] in (REGISTER, CHECK) and _boundary(scope) is not None


class Uploads:
    """ASGI, around the routes and within the edge, which has verified the caller's key."""

    def __init__(self, app: ASGIApp, arrivals: Arrivals) -> None:
        self._app = app
        self._arrivals = arrivals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_upload(scope):
            await self._app(scope, receive, send)
            return
        caller = scope.get(CALLER)
        if not isinstance(caller, Key) or "admin" not in caller.scopes:
            raise Forbidden("This key lacks the scope admin.", param=None, retryable=False)
        async with AsyncExitStack() as stack:
            form = _Form(self._arrivals, scope, stack)
            arrived = await form.read(receive)
            body = json.dumps({**form.fields, "source": arrived.source}).encode()
            headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-type", b"content-length")]
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await self._app({**scope, "headers": headers, UPLOADED: (arrived, stack)}, _once(body, receive), send)


class _Form:
    """One form: small fields, and one file, which goes to disk."""

    def __init__(self, arrivals: Arrivals, scope: Scope, stack: AsyncExitStack) -> None:
        self._arrivals = arrivals
        self._scope = scope
        self._stack = stack
        self._upload: Upload | None = None
        self._part: str | None = None
        self._value = bytearray()
        self.fields: dict[str, str | bool] = {}

    async def read(self, receive: Receive) -> Arrived:
        """All of it; InvalidRequest, RequestTooLarge, RequestTimeout, and whatever is wrong with the archive."""
        parser = PushMultipartParser(_boundary(self._scope) or "", max_segment_count=MAX_PARTS)
        try:
            with parser:
                async for chunk in _chunks(receive):
                    for event in parser.parse(chunk):
                        await self._take(event)
        except MultipartError:
            raise InvalidRequest("The body is not multipart/form-data, or it ends in the middle.") from None
        if self._upload is None:
            raise InvalidRequest("The form has no part `file`: an archive with the adapter in it.", param="file")
        return await self._upload.arrived()

    async def _take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            await self._begin(event)
        elif event is None:
            self._end()
        elif self._part == "file" and self._upload is not None:
            await self._upload.write(bytes(event))
        else:
            self._value += event
            if len(self._value) > MAX_FIELD_BYTES:
                raise RequestTooLarge(f"A field of the form is larger than {MAX_FIELD_BYTES} bytes.")

    async def _begin(self, part: MultipartSegment) -> None:
        self._part, self._value = part.name or "", bytearray()
        if self._part in self.fields or (self._part == "file" and self._upload is not None):
            raise InvalidRequest("The form has the same part twice.")
        if self._part == "file":
            name = self.fields.get("name")
            if self._scope["path"] == REGISTER and name is not None:
                may_register(self._scope[CALLER], str(name))
                _check(self.fields)  # before gigabytes are sent for nothing
            total = _length(self._scope)
            receiving = self._arrivals.upload(part.filename or "archive", total=total, name=str(name) if name else None)
            self._upload = await self._stack.enter_async_context(receiving)

    def _end(self) -> None:
        if self._part is None or self._part == "file":
            return
        try:
            value = self._value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("A field of the form is not UTF-8.") from None
        if self._part == "source":
            raise InvalidRequest("Send either a `source` as JSON or a `file` as a form.", param="source")
        self.fields[self._part] = value == "true" if self._part == "promote" and value in ("true", "false") else value


class IntakeRoutes:
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def router(self) -> APIRouter:
        router = APIRouter(dependencies=[Depends(admin)], tags=["adapters"])
        router.add_api_route("/admin/v1/intakes", self.list, methods=["GET"])
        return router

    async def list(self, caller: Admin) -> Listed[IntakeView]:
        """Adapters on their way in: uploads and fetches that run or wait."""
        return Listed[IntakeView](
            data=[
                IntakeView(
                    id=each.id,
                    name=each.name,
                    source=each.source,
                    phase=each.phase,
                    bytes_done=each.bytes_done,
                    bytes_total=each.bytes_total,
                    started_at=int(each.started_at),
                )
                for each in self._arrivals.running
                if caller.models is None or (each.name is not None and reaches(caller, each.name))
            ],
            has_more=False,
        )


@asynccontextmanager
async def arriving(
    arrivals: Arrivals, request: Request, source: str, name: str | None = None
) -> AsyncIterator[Arrived]:
    """The adapter of a request: what was uploaded with it, else what `source` names.

    A fetch ends when its caller leaves; what was fetched is then used all the same. ClientDisconnect.
    """
    if UPLOADED in request.scope:
        arrived, form = request.scope[UPLOADED]
        async with form:  # its draft is gone before the answer
            yield arrived
        return
    async with AsyncExitStack() as stack:
        opening = asyncio.ensure_future(stack.enter_async_context(arrivals.open(source, name=name)))
        gone = asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait((opening, gone), return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise ClientDisconnect
            arrived = opening.result()
        finally:
            for task in (opening, gone):
                task.cancel()
            await asyncio.gather(opening, gone, return_exceptions=True)
        yield arrived


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    received, more = 0, True
    while more:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"No byte of the upload arrived for {IDLE_TIMEOUT_S:.0f} s.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > MAX_ARCHIVE_BYTES + 1024 * 1024:
            raise RequestTooLarge(f"The upload is larger than {MAX_ARCHIVE_BYTES} bytes.")
        if chunk:
            yield chunk


def _check(fields: dict[str, str | bool]) -> None:
    try:
        check_public_name(AdapterRegister.model_validate({**fields, "source": "upload"}).name)
    except ValidationError as exc:
        errors = [{**error, "loc": ("body", *error["loc"])} for error in exc.errors()]
        raise problems.from_validation(RequestValidationError(errors)) from None


def _boundary(scope: Scope) -> str | None:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    if len(kinds) != 1:
        return None
    kind, options = parse_options_header(kinds[0].decode("latin-1"))
    boundary = options.get("boundary", "")
    return boundary if kind == "multipart/form-data" and 0 < len(boundary) <= 200 and boundary.isprintable() else None


def _length(scope: Scope) -> int | None:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() else None


def _once(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
