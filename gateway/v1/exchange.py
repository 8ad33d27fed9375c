"""One request and its answer between a caller's connection and an engine's: the mechanics, not the decisions.

Receives what the engine's connection calls (on_head, on_body, on_end, on_fault) and what the caller's does
(gone, paused, resumed), keeps it as plain fields, and resumes the coroutine of proxy.py that decides.
Must not know keys, limits or names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from adapters.errors import ServiceError
from gateway.v1.dialect import Dialect
from gateway.v1.flow import PAUSE, Flow
from gateway.v1.meter import Meter, StreamMeter
from gateway.v1.upstream import Call, Fault

if TYPE_CHECKING:
    from gateway.v1.proxy import Proxy

STATUS = {
    200: b"HTTP/1.1 200 OK\r\n", 400: b"HTTP/1.1 400 Bad Request\r\n", 401: b"HTTP/1.1 401 Unauthorized\r\n",
    403: b"HTTP/1.1 403 Forbidden\r\n", 404: b"HTTP/1.1 404 Not Found\r\n", 405: b"HTTP/1.1 405 Method Not Allowed\r\n",
    408: b"HTTP/1.1 408 Request Timeout\r\n", 413: b"HTTP/1.1 413 Content Too Large\r\n",
    414: b"HTTP/1.1 414 URI Too Long\r\n", 415: b"HTTP/1.1 415 Unsupported Media Type\r\n",
    429: b"HTTP/1.1 429 Too Many Requests\r\n", 431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    500: b"HTTP/1.1 500 Internal Server Error\r\n", 502: b"HTTP/1.1 502 Bad Gateway\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n", 504: b"HTTP/1.1 504 Gateway Timeout\r\n",
}  # fmt: skip


PING_S = 15.0  # between comments in a stream that is silent


class ClientGone(Exception):
    """The caller's connection is gone: nobody reads the answer."""


class Client(Protocol):
    """The caller's connection, as an exchange sees it."""

    keep_alive: bool
    chunked: bool  # False for HTTP/1.0: a stream ends with the connection

    def common_headers(self) -> bytes: ...  # date, and connection: close where that is so
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...  # the answer is whole: on to the next request
    def abort(self) -> None: ...  # close at once: the caller must see that the answer is not whole


class Exchange:
    __slots__ = (
        "answer_headers", "body", "call", "client", "dialect", "ended", "fault", "fault_detail", "flow",
        "headers", "held", "last_write", "meter", "parts", "proxy", "received", "request_id", "started",
        "status", "stream",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: Client, dialect: Dialect, headers: Mapping[bytes, bytes], body: bytes, now: float
    ) -> None:
        self.proxy = proxy
        self.client = client
        self.dialect = dialect
        self.headers = headers
        self.body = body
        self.request_id = proxy.new_request_id()
        self.received = now  # monotonic seconds: the request is whole
        self.started = False  # something of the answer has been written
        self.last_write = now
        self.meter: Meter | None = None  # set while bytes pass straight through
        self.flow: Flow = None  # type: ignore[assignment]  # set by begin(), before anything can use it
        self.forget_answer()

    def forget_answer(self) -> None:
        """Ready for the next attempt: nothing of the last one counts."""
        self.call: Call | None = None
        self.status = 0
        self.answer_headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.held = 0
        self.ended = False
        self.fault: Fault | None = None
        self.fault_detail = ""
        self.stream = False  # the caller wants a stream: resume at the first byte of a 200

    def begin(self) -> None:
        self.flow = Flow(self.proxy.answer(self))
        self.flow.resume()

    # What the engine's connection calls ---------------------------------------------------------------

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.answer_headers = headers

    def on_body(self, data: bytes) -> None:
        if self.meter is not None:
            self._pass_on(data)
            return
        self.parts.append(data)
        self.held += len(data)
        if self.status == 200 and (self.stream or self.held > self.proxy.hold_bytes):
            self.flow.resume()
        elif self.held > self.proxy.hold_bytes and self.call is not None:
            self.call.cancel()  # an error page of that size says nothing more
            self.ended = True
            self.flow.resume()

    def on_end(self) -> None:
        self.ended = True
        self.flow.resume()

    def on_fault(self, fault: Fault, detail: str) -> None:
        self.fault, self.fault_detail = fault, detail
        self.flow.resume()

    # What the caller's connection calls ---------------------------------------------------------------

    def client_gone(self) -> None:
        self.flow.throw(ClientGone())

    def client_paused(self) -> None:
        if self.call is not None:
            self.call.pause()

    def client_resumed(self) -> None:
        if self.call is not None:
            self.call.resume()

    def sweep(self, now: float) -> None:
        """A comment now and then: what stands between us and the caller may cut a silent stream after a minute."""
        if self.meter is not None and self.stream and now - self.last_write > PING_S:
            self.last_write = now
            self.client.write(self._framed(b": ping\n\n"))

    def terminate(self, error: ServiceError) -> None:
        """End it now with `error`: shutting down, or the caller reads nothing."""
        self.flow.throw(error)

    # What the coroutine uses ---------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """The answer is whole, broken, too large to hold, or a stream whose first bytes are there."""
        if self.ended or self.fault is not None:
            return True
        return self.held > (0 if self.stream and self.status == 200 else self.proxy.hold_bytes)

    async def passed_through(self) -> None:
        """Until the engine's answer has ended, or the meter has seen all that may be shown."""
        meter = self.meter
        while not self.ended and self.fault is None and meter is not None and not meter.stopped:
            await PAUSE

    def header(self, name: bytes) -> bytes:
        """One header of the engine's answer, b"" if it has none."""
        for key, value in self.answer_headers:
            if key == name:
                return value
        return b""

    def write_whole(self, status: int, head_lines: bytes, body: bytes) -> None:
        """The whole answer in one write."""
        client = self.client
        self.started = True
        client.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b"
            % (STATUS[status], len(body), self.request_id, head_lines, client.common_headers(), body)
        )
        client.finish()

    def start_passing(self, meter: Meter, head_lines: bytes) -> None:
        """Write the head and what is held so far; from here on_body passes straight through `meter`."""
        client = self.client
        self.meter = meter
        self.started = True
        framing = b"transfer-encoding: chunked\r\n" if client.chunked else b""
        head = b"%bx-request-id: %b\r\n%b%b%b\r\n" % (
            STATUS[200], self.request_id, head_lines, framing, client.common_headers()
        )  # fmt: skip
        first = meter.feed(b"".join(self.parts))
        self.parts = []
        client.write(head + self._framed(first) if first else head)

    def _pass_on(self, data: bytes) -> None:
        meter = self.meter
        assert meter is not None  # noqa: S101  # only called while one is set
        out = meter.feed(data)
        proxy = self.proxy
        if out:
            now = proxy.clock()
            proxy.metrics.inter_token.observe(now - self.last_write)
            self.last_write = now
            self.client.write(b"%x\r\n%b\r\n" % (len(out), out) if self.client.chunked else out)
        if meter.stopped:
            if self.flow.done and self.call is not None:
                self.call.cancel()  # it goes on after its last word
            self.flow.resume()

    def let_go(self, call: Call) -> None:
        """Nobody waits for the rest: an engine that has said its last word ends by itself, any other is cut off."""
        if isinstance(self.meter, StreamMeter) and self.meter.saw_terminator:
            call.resume()  # its connection can be used again
        else:
            call.cancel()

    def end_passing(self, last: bytes) -> None:
        """Write `last` (b"" for nothing) and the well-formed end of the answer."""
        client = self.client
        if client.chunked:
            client.write(self._framed(last) + b"0\r\n\r\n" if last else b"0\r\n\r\n")
        elif last:
            client.write(last)
        client.finish()

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.client.chunked else data
