"""One caller's connection on the public port: framing, its bounds and deadlines.

Parses with httptools, refuses what may not pass (reliability: uvicorn bounds neither headers nor time), hands
inference requests straight to the data plane and everything else to the ASGI app through uvicorn's own cycle. A body
is kept whole but on the few paths whose app reads it as it comes (gateway/streamed.py).
Written against uvicorn 0.54.0, pinned exactly. Must not know what a request means.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.parse
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from adapters.errors import InvalidRequest, ServiceError
from gateway.errors import HeadersTooLarge, RequestTimeout, RequestTooLarge, UnsupportedMedia
from gateway.settings import Receive
from gateway.streamed import StreamedBody

log = logging.getLogger("loragate.protocol")

MAX_TARGET_BYTES = 8192
LINGER_S = 2.0  # how long what was refused may go on sending before it is cut; an upload of a known key longer
STRANGER_BYTES = 64 * 1024  # of a body, from whoever has shown no valid key; 4,096 connections could hold 32 GB else
MAX_PIPELINED = 16  # whole requests waiting behind the one being answered; more close the connection
# Java's client offers h2c on every first request. It may be ignored, but httptools would then skip the body: so
# the header is made another one before it is parsed.
UPGRADE = re.compile(rb"(?im)^(upgrade)[ \t]*:")
SINGLE = (b"host", b"content-length", b"authorization", b"x-api-key", b"content-type", b"transfer-encoding")


class Handler(Protocol):
    """The data plane's side of one request, as this file sees it (gateway/v1/exchange.py)."""

    def begin(self) -> None: ...
    def client_gone(self) -> None: ...
    def sweep(self, now: float) -> None: ...
    def client_paused(self) -> None: ...
    def client_resumed(self) -> None: ...
    def terminate(self, error: ServiceError) -> None: ...


class Plane(Protocol):
    """What answers hot routes, and how an error looks on a route that has no row."""

    streamed: Mapping[bytes, int]  # paths whose app reads a POST's body as it comes → how large that may be

    def handler(
        self,
        connection: Connection,
        method: bytes,
        path: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes,
        now: float,
    ) -> Handler | None: ...
    def stranger(self, path: bytes, headers: Mapping[bytes, bytes]) -> ServiceError | None: ...  # why not send much
    def render(self, path: bytes, error: ServiceError) -> bytes: ...  # a whole HTTP answer but for common headers


@dataclass(slots=True)
class Request:
    """One parsed request, waiting or being answered."""

    method: bytes
    target: bytes
    path: bytes
    headers: list[tuple[bytes, bytes]]
    named: dict[bytes, bytes]
    keep_alive: bool
    version: str
    body: bytes = b""
    refused: ServiceError | None = None
    streamed: StreamedBody | None = None  # the app reads the body as it comes; None: it gets it whole


class Connection(asyncio.Protocol):
    """States by what it waits for, each with a deadline watched by `sweep`: a head, a body, or the answer."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        plane: Plane,
        bounds: Receive,
    ) -> None:
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.loop = _loop or asyncio.get_running_loop()
        self.plane = plane
        self.bounds = bounds
        self.stranger_limit = min(STRANGER_BYTES, bounds.max_body_bytes)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self.flow: FlowControl = None  # type: ignore[assignment]  # set by connection_made
        self.parser = httptools.HttpRequestParser(self)
        self.handler: Handler | None = None  # the hot request being answered
        self.cycle: RequestResponseCycle | None = None  # the other kind
        self.waiting: deque[Request] = deque()
        self.common_of: list[tuple[bytes, bytes]] | None = None
        self.common = b""
        self.keep_alive = True
        self.chunked = True
        self.closing = False  # what still arrives is thrown away
        self.lingers_until: float | None = None
        self.lost = False
        # The request being received
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.body_limit = self.stranger_limit
        self.loose_bytes = 0  # received since the last piece of a body: heads, trailers, chunk extensions
        self.in_head = False
        self.request: Request | None = None
        self.waits_since = time.monotonic()  # for a head, or the rest of a body
        self.write_paused_at: float | None = None

    # The transport ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.flow = FlowControl(self.transport)
        if len(self.server_state.connections) >= self.bounds.max_connections:
            self.transport.abort()  # accept and drop: the cheapest way to say no before a request is read
            self.lost = True
            return
        self.server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn only calls shutdown() on it

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.server_state.connections.discard(self)
        self.waiting.clear()
        if self.handler is not None:
            handler, self.handler = self.handler, None
            handler.client_gone()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self.loose_bytes += len(data)  # httptools has no bound of its own; a body's bytes are bounded in on_body
        if b"pgrade" in data and self.request is None:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"x-\\1:", head) + end + rest
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(InvalidRequest("This server does not switch protocols."))
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._fail(
                cause if isinstance(cause, ServiceError) else InvalidRequest("The request is not valid HTTP/1.1.")
            )
        if self.loose_bytes > self.bounds.max_header_bytes and (self.in_head or self.request is not None):
            self._fail(self._headers_too_large())

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.write_paused_at = time.monotonic()
        self.flow.pause_writing()
        if self.handler is not None:
            self.handler.client_paused()

    def resume_writing(self) -> None:
        self.write_paused_at = None
        self.flow.resume_writing()
        if self.handler is not None:
            self.handler.client_resumed()
        elif self.waiting or self.flow.read_paused:
            self.loop.call_soon(self._next)

    # The parser -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.in_head = True
        self.target = b""
        self.headers = []
        self.body = []
        self.body_bytes = 0
        self.body_limit = self.stranger_limit
        self.request = None
        self.waits_since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self.target += url
        if len(self.target) > MAX_TARGET_BYTES:
            raise HeadersTooLarge("The request's URL is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # trailers are dropped: they must not become headers after those were checked
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.loose_bytes = 0
        parser, target = self.parser, self.target
        request = self.request = Request(
            parser.get_method(),
            target,
            target.partition(b"?")[0],
            self.headers,
            named := dict(self.headers),
            parser.should_keep_alive(),
            parser.get_http_version(),
        )
        limit = self.plane.streamed.get(request.path, 0) if request.method == b"POST" else 0
        request.refused = self._objection(request, limit or self.bounds.max_body_bytes)
        if limit and request.refused is None:
            request.refused = self.plane.stranger(request.path, named)
            request.streamed = StreamedBody()
        if request.refused is not None:
            request.keep_alive = False
            self.closing = True
            self._queue(request)
        elif b"expect" in named and named[b"expect"].lower() == b"100-continue" and not self._busy():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.streamed is not None and request.refused is None:
            self._queue(request)

    def on_body(self, data: bytes) -> None:
        if self.closing:
            return
        self.loose_bytes = 0
        if self.request is not None and self.request.streamed is not None:
            self.request.streamed.take(data, self.flow)
            return
        self.body.append(data)
        self.body_bytes += len(data)
        if self.body_bytes > self.body_limit:
            self._refuse_or_trust()

    def on_message_complete(self) -> None:
        request = self.request
        if request is None or self.closing:
            return
        self.loose_bytes = 0
        self.request = None
        if request.streamed is not None:
            request.streamed.end()  # it was queued with its head
            return
        body, self.body = self.body, []
        request.body = body[0] if len(body) == 1 else b"".join(body)
        self._queue(request)

    def _refuse_or_trust(self) -> None:
        """A large body: only from callers with a valid key, and only up to the bound."""
        error: ServiceError | None = None
        if self.body_bytes > self.bounds.max_body_bytes:
            error = self._body_too_large(self.bounds.max_body_bytes)
        elif self.request is not None:
            error = self.plane.stranger(self.request.path, self.request.named)
            self.body_limit = self.bounds.max_body_bytes
        if error is not None:
            self._refuse_rest(error)

    def _objection(self, request: Request, limit: int) -> ServiceError | None:
        """What may not pass, whatever it asks for; limit: of the body's bytes."""
        named = request.named
        if len(request.headers) > self.bounds.max_headers:
            return self._headers_too_large()
        if len(named) != len(request.headers):
            names = [name for name, _ in request.headers]
            if any(names.count(name) > 1 for name in SINGLE):
                return InvalidRequest("A header that may come once came twice.")
        if b"host" not in named and request.version != "1.0":
            return InvalidRequest("The Host header is missing.")
        if not request.target.startswith(b"/") or b"#" in request.target or not request.target.isascii():
            return InvalidRequest("The request's target must be a path.")
        if b"transfer-encoding" in named and named[b"transfer-encoding"].lower() != b"chunked":
            return InvalidRequest("Only the transfer encoding `chunked` is understood.")
        if named.get(b"content-encoding", b"identity").lower() != b"identity":
            return UnsupportedMedia("Compressed request bodies are not accepted. Send it without Content-Encoding.")
        length = named.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length[:20]) > limit):
            return self._body_too_large(limit)
        return None

    # Requests in their order ------------------------------------------------------------------------------

    def _busy(self) -> bool:
        return self.handler is not None or self.cycle is not None

    def _queue(self, request: Request) -> None:
        if self.handler is not None or self.cycle is not None or self.waiting or self.write_paused_at is not None:
            self.waiting.append(request)
            if len(self.waiting) >= MAX_PIPELINED:
                self.closing = True
            self.flow.pause_reading()
        else:
            self._start(request)

    def _next(self) -> None:
        if self.write_paused_at is not None:
            return  # the answers so far are not read: resume_writing goes on
        if self.waiting and not self._busy() and not self.lost:
            request = self.waiting.popleft()
            request.keep_alive = request.keep_alive and not (self.closing and not self.waiting)
            self._start(request)
        elif not self.waiting and not self.lost and not self.closing:
            self.flow.resume_reading()

    def _start(self, request: Request) -> None:
        self.chunked = request.version != "1.0"
        self.keep_alive = request.keep_alive and self.chunked  # without chunks a stream ends with its connection
        if request.refused is not None:
            self._reject(request.path, request.refused)
            return
        handler = self.plane.handler(self, request.method, request.path, request.named, request.body, time.monotonic())
        if handler is not None:
            self.handler = handler
            handler.begin()
        else:
            self._start_asgi(request)

    def _start_asgi(self, request: Request) -> None:
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.version,
            "server": get_local_addr(self.transport),
            "client": get_remote_addr(self.transport),
            "scheme": "http",
            "root_path": "",
            "headers": request.headers,
            "state": self.app_state.copy(),
            "method": request.method.decode("ascii"),
            "path": urllib.parse.unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
        }
        cycle = self.cycle = RequestResponseCycle(
            scope=cast("Any", scope),
            transport=self.transport,
            flow=self.flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self.keep_alive or request.streamed is not None,  # it would close with unread bytes: a reset
            on_response=self._asgi_answered,
        )
        cycle.body = bytearray(request.body)
        cycle.more_body = False
        if request.streamed is not None:
            request.streamed.begin(cycle)
        cycle.message_event.set()
        task = self.loop.create_task(cycle.run_asgi(self.config.loaded_app))
        task.add_done_callback(self.server_state.tasks.discard)
        self.server_state.tasks.add(task)

    def _asgi_answered(self) -> None:
        self.cycle = None
        self.waits_since = time.monotonic()
        if self._breaks_off():
            self._linger(self.bounds.body_timeout_s)  # answered before all of the body came: the rest is thrown away
        elif not self.keep_alive:
            self.close()
        self.loop.call_soon(self._next)

    # What a handler calls (gateway.v1.exchange.Client) -------------------------------------------------------

    def common_headers(self) -> bytes:
        current = self.server_state.default_headers  # a new list every second: the date
        if current is not self.common_of:
            self.common_of, self.common = current, b"".join(b"%b: %b\r\n" % header for header in current)
        return self.common if self.keep_alive else self.common + b"connection: close\r\n"

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def finish(self) -> None:
        self.handler = None
        self.server_state.total_requests += 1
        self.waits_since = time.monotonic()
        if not self.keep_alive:
            self.close()
        elif self.waiting or self.flow.read_paused:
            self.loop.call_soon(self._next)  # not on the spot: pipelined refusals would nest without end

    def abort(self) -> None:
        self.handler = None
        self.transport.abort()

    # Ends ---------------------------------------------------------------------------------------------------

    def _reject(self, path: bytes, error: ServiceError) -> None:
        self.keep_alive = False
        head, _, body = self.plane.render(path, error).partition(b"\r\n\r\n")
        self.transport.write(head + b"\r\n" + self.common_headers() + b"\r\n" + body)
        self._linger()

    def _refuse_rest(self, error: ServiceError) -> None:
        """The body is too much: answer now, read no more."""
        request, self.request = self.request, None
        self.body = []
        self.closing = True
        if request is not None:
            request.refused, request.keep_alive = error, False
            self._queue(request)

    def _fail(self, error: ServiceError) -> None:
        """What came is not a request: answer it if nothing else is being answered, and close."""
        if self.closing:
            return
        self.closing = True
        if self._breaks_off():
            self.transport.abort()  # the app sees a caller that left
        elif self._busy() or self.waiting:
            self.keep_alive = False  # what is being answered ends first
        else:
            self._reject(self.target.partition(b"?")[0], error)

    def _breaks_off(self) -> bool:
        """Whether an app reads the body that is still coming."""
        streamed = self.request.streamed if self.request is not None else None
        return streamed is not None and streamed.begun

    def _linger(self, limit_s: float = LINGER_S) -> None:
        """Close for writing only: closing with unread bytes resets, and the caller would never see our answer."""
        self.closing = True
        self.lingers_until = time.monotonic() + limit_s
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def close(self) -> None:
        self.closing = True
        self.transport.close()

    def shutdown(self) -> None:
        """uvicorn's call at the end: finish what is being answered, close what is idle."""
        if self._busy() or self.waiting:
            self.keep_alive = False
            if self.cycle is not None:
                self.cycle.keep_alive = False
        else:
            self.close()

    def sweep(self, now: float) -> None:
        """Enforce this connection's deadlines."""
        bounds = self.bounds
        if self.write_paused_at is not None and now - self.write_paused_at > bounds.write_idle_timeout_s:
            self.transport.abort()  # connection_lost tells the handler
        elif self.transport.is_closing():
            if now - self.waits_since > bounds.write_idle_timeout_s:
                self.transport.abort()
        elif self.lingers_until is not None:
            if now > self.lingers_until:
                self.transport.abort()
        elif self._busy():
            if self.handler is not None and self.write_paused_at is None:
                self.handler.sweep(now)
        elif self.request is not None:
            if now - self.waits_since > bounds.body_timeout_s:
                self._fail(RequestTimeout("The request's body did not arrive in time."))
        elif self.in_head or self.loose_bytes:
            if now - self.waits_since > bounds.header_timeout_s:
                self._fail(RequestTimeout("The request's headers did not arrive in time."))
        elif now - self.waits_since > self._idle_limit():
            self.transport.abort()

    def _idle_limit(self) -> float:
        """A connection that has never asked anything gets a header's time, one that has the keep-alive time."""
        return self.bounds.keepalive_s if self.target else self.bounds.header_timeout_s

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's headers are larger than {self.bounds.max_header_bytes} bytes or more than "
            f"{self.bounds.max_headers}."
        )

    def _body_too_large(self, limit: int) -> RequestTooLarge:
        return RequestTooLarge(f"The request's body is larger than {limit} bytes.")
