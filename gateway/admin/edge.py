"""The outermost layer of the admin port, pure ASGI: request id, guard, body bounds, and the last catch of an error.

Every answer leaves with `x-request-id`; every failure leaves in OpenAI's shape. Must not know routes or services.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import InvalidRequest, ServiceError
from gateway.admin.access import CALLER
from gateway.errors import RequestTimeout, RequestTooLarge, UnsupportedMedia
from gateway.keys import Key
from gateway.render import render

log = logging.getLogger("loragate.admin")

MAX_BODY_BYTES = 1024 * 1024
BODY_TIMEOUT_S = 30.0


class _Gone(Exception):
    """The client left before its request was whole."""


class Edge:
    """admit: the caller's key, None where none is needed; raises for strangers. new_id: makes `x-request-id`s.

    streamed: whether the app reads this body itself, with bounds of its own; asked for verified callers only.
    """

    def __init__(
        self,
        app: ASGIApp,
        admit: Callable[[Scope], Key | None],
        new_id: Callable[[], str],
        streamed: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        self._app = app
        self._admit = admit
        self._new_id = new_id
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode("ascii"))]
            await send(message)

        try:
            caller = scope[CALLER] = self._admit(scope)
            if caller is None or not self._streamed(scope):
                receive = _replay(await _read(scope, receive), receive)
            await self._app(scope, receive, stamped)
        except (_Gone, ClientDisconnect):
            return
        except ServiceError as error:
            if error.status >= 500 and error.__cause__ is not None:
                log.error("admin request %s: %s", request_id, error.code, exc_info=_without_text(error.__cause__))
            if started:
                raise
            await _answer(error, stamped)
        except Exception as error:
            # The type and the id only: a message may hold what the caller sent.
            log.error("admin request %s failed: %s", request_id, type(error).__name__, exc_info=_without_text(error))
            if started:
                raise
            await _answer(ServiceError("The gateway failed on this request; its log says where."), stamped)


async def _answer(error: ServiceError, send: Send) -> None:
    status, headers, body = render(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(scope: Scope, receive: Receive) -> bytes:
    """The whole body; RequestTooLarge, RequestTimeout, UnsupportedMedia, InvalidRequest."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise RequestTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from None
    if body and scope["method"] == "DELETE":  # a version in it, not looked at, would be taken for "all of them"
        raise InvalidRequest("DELETE takes no body. Name a version in the URL, as ?version= and its 12 digits.")
    if body:
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if len(kinds) != 1 or kinds[0].split(b";")[0].strip().lower() != b"application/json":
            raise UnsupportedMedia("Send the body as JSON, with `Content-Type: application/json`.")
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _without_text(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Where it failed, without what it said: that may hold what the caller sent."""
    bare = ServiceError(f"({type(error).__name__})")
    return type(bare), bare, error.__traceback__
