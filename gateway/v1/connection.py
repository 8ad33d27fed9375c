"""One socket to one engine replica: its HTTP/1.1 parser, its deadline, and the one request it carries at a time.

Knows bytes, framing and time. Which request gets which connection is upstream.py's matter, what an answer means
is the sink's. Everything runs as callbacks of the event loop: no task, timer, future or closure per request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

log = logging.getLogger("loragate.upstream")

MAX_INTERIM = 8  # 1xx heads before one answer; vLLM sends none, a proxy in front of it one or two
NEVER = float("inf")

# What a connection is doing. Plain integers: they are compared several times for every chunk of a stream.
CONNECTING, IDLE, HEAD, BODY, DONE, DEAD = range(6)

# The only headers that the framing depends on; looked for once per answer.
_WATCHED = frozenset((b"content-length", b"transfer-encoding", b"content-encoding"))


class Fault(StrEnum):
    """How one request to one replica failed."""

    REFUSED = "refused"  # no connection was made, nothing was sent
    CONNECT_TIMEOUT = "connect_timeout"  # the same, but slowly
    RESET = "reset"  # connection lost before the whole head
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"  # no whole head in time
    IDLE_TIMEOUT = "idle_timeout"  # stalled in the middle of the body
    CUT = "cut"  # connection lost in the middle of the body
    PROTOCOL = "protocol"  # not HTTP/1.x as we accept it
    POOL_FULL = "pool_full"  # max_connections reached, nothing was sent
    CLOSED = "closed"  # ended by our own side: shutting down, or a sink that raised


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """Limits of the client to one replica; times in seconds, sizes in bytes."""

    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    answer_timeout_s: float = 600.0  # the same for an answer that begins when all of it is generated
    idle_timeout_s: float = 60.0
    keepalive_s: float = 4.0  # below uvicorn's 5 s, so that the engine rarely closes under us
    max_connections: int = 1024
    max_head_bytes: int = 32768
    max_headers: int = 100


class Sink(Protocol):
    """Where one answer goes. Called from the event loop, synchronously; it must not block."""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Status and headers (names in lower case) of the final answer; 1xx heads are never shown."""

    def on_body(self, data: bytes) -> None:
        """The next bytes of the body, without their framing."""

    def on_end(self) -> None:
        """The answer is whole, as its framing says."""

    def on_fault(self, fault: Fault, detail: str) -> None:
        """The answer will not come, or not whole. `detail` is for our log only: it may name addresses."""


class Pool(Protocol):
    """What a connection needs of its owner (upstream.py)."""

    config: UpstreamConfig
    clock: Callable[[], float]
    in_flight: int

    def release(self, connection: Connection) -> None:
        """The connection may carry another request."""

    def retire(self, connection: Connection) -> None:
        """The connection will carry no more requests; its socket is being closed."""

    def forget(self, connection: Connection) -> None:
        """The socket is closed."""

    def retry(self, call: Call) -> None:
        """Send `call` once more, on a new connection."""


class Call:
    """Handle of one request; outlives its connection, so that a late `cancel` never hits another request."""

    __slots__ = ("body", "connection", "head", "paused", "pool", "sink", "timeout_s")

    def __init__(self, pool: Pool, sink: Sink, head: bytes, body: bytes, timeout_s: float) -> None:
        self.pool = pool
        self.sink: Sink | None = sink  # None: ended, no callback any more
        self.head = head
        self.body = body
        self.timeout_s = timeout_s  # until the whole head of the answer
        self.connection: Connection | None = None
        self.paused = False

    def cancel(self) -> None:
        """Close the socket at once, which is how vLLM learns to abort. No more callbacks; idempotent."""
        if self.sink is None:
            return
        connection = self.connection
        self.end()
        if connection is not None:
            connection.close()

    def pause(self) -> None:
        """Stop reading this answer: the kernel's buffers fill and the engine waits. No deadline runs meanwhile."""
        if self.sink is not None and not self.paused:
            self.paused = True
            if self.connection is not None:
                self.connection.pause()

    def resume(self) -> None:
        """Read on; the deadline starts afresh."""
        if self.sink is not None and self.paused:
            self.paused = False
            if self.connection is not None:
                self.connection.resume()

    def end(self) -> Sink | None:
        """Detach the sink, once; None when it already was."""
        sink = self.sink
        if sink is not None:
            self.sink = self.connection = None
            self.pool.in_flight -= 1
        return sink

    def fail(self, fault: Fault, detail: str) -> None:
        """End with a fault, unless already ended."""
        sink = self.end()
        if sink is not None:
            try:
                sink.on_fault(fault, detail)
            except Exception as error:
                log_raised("on_fault", error)


class Connection(asyncio.Protocol):
    """A socket from its dialling to its closing. The owner's sweep reads `deadline`; nothing else measures time."""

    __slots__ = (
        "_config", "_framed", "_headers", "_idle_s", "_interim", "_keep", "_max_head", "_now", "_parser", "_pool",
        "_reused", "_seen", "_sink", "_transport", "call", "deadline", "stage", "task",
    )  # fmt: skip

    def __init__(self, pool: Pool, call: Call) -> None:
        config = pool.config
        self._pool = pool
        self._config = config
        self._now = pool.clock
        self._idle_s = config.idle_timeout_s
        self._max_head = config.max_head_bytes
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._sink: Sink | None = None
        self._framed = self._keep = self._reused = False
        self._interim = 0
        self._seen = 0  # bytes received since the request was sent, or since the last byte of body
        self.call: Call | None = call
        self.task: asyncio.Task[tuple[asyncio.Transport, Connection]] | None = None  # dials; cancelled by close
        self.stage = CONNECTING
        self.deadline = self._now() + config.connect_timeout_s

    # ---- the owner's side

    def dialled(self, task: asyncio.Task[tuple[asyncio.Transport, Connection]]) -> None:
        """Dialling has ended, one way or another; connection_made has run before if it went well."""
        self.task = None
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            if self.call is not None and self.call.paused:
                self.pause()  # not in connection_made: uvloop begins to read only after it
            return
        if error is not None and self.stage == CONNECTING:
            self.fail(Fault.REFUSED, f"{type(error).__name__}: {error}")
        else:
            self.fail(Fault.CLOSED, "cancelled from outside")  # says nothing when it was by us
        self._pool.forget(self)  # here too: uvloop calls no connection_lost for a transport whose dialling failed

    def send(self, call: Call, now: float) -> None:
        """Write the request of `call`; the connection is connected and carries nothing else."""
        transport = self._transport
        assert transport is not None  # noqa: S101  # only for the type checker: idle connections have one
        self.call = call
        self._sink = call.sink
        call.connection = self
        self.stage = HEAD
        self._seen = 0
        self.deadline = now + call.timeout_s
        transport.write(call.head)
        if call.body:
            transport.write(call.body)

    def pause(self) -> None:
        """Stop reading; `expire` leaves a paused call alone."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on, with a fresh deadline."""
        call = self.call
        if self._transport is not None and call is not None:
            self.deadline = self._now() + (self._idle_s if self.stage == BODY else call.timeout_s)
            self._transport.resume_reading()

    def expire(self) -> None:
        """The deadline has passed: end what waits for it."""
        call = self.call
        if call is None:
            self.close()
        elif self.stage == CONNECTING:
            self.fail(Fault.CONNECT_TIMEOUT, f"no connection within {self._config.connect_timeout_s:g} s")
        elif call.paused:
            return  # our own reader is slow, not the engine
        elif self.stage == HEAD:
            self.fail(Fault.FIRST_BYTE_TIMEOUT, f"no answer within {call.timeout_s:g} s")
        else:
            self.fail(Fault.IDLE_TIMEOUT, f"nothing came for {self._idle_s:g} s in the middle of the answer")

    def close(self) -> None:
        """Close the socket, or give up dialling; what the kernel still holds is dropped. Tells no sink; idempotent."""
        if self.stage == DEAD:
            return
        self.stage = DEAD
        self.deadline = NEVER
        self.call = self._sink = None
        self._pool.retire(self)
        if self._transport is not None:
            self._transport.abort()
        elif self.task is not None:
            self.task.cancel()

    def fail(self, fault: Fault, detail: str) -> None:
        """Close, and tell the sink why."""
        call = self.call
        self.close()
        if call is not None:
            call.fail(fault, detail)

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        ours = cast(asyncio.Transport, transport)
        call = self.call
        if call is None:  # given up while the last step of dialling was under way
            ours.abort()
            return
        self._transport = ours
        self._parser = HttpResponseParser(self)
        self.send(call, self._now())

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._sink is None or parser is None:  # nobody asked: unsolicited bytes, or a call given up just now
            self.close()
            return
        self._seen += len(data)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if self.stage != DONE:
                self.fail(Fault.PROTOCOL, f"{error.__context__ or error}")
                return
            self._keep = False  # bytes after a whole answer: the answer is good, the connection is not
        stage = self.stage
        if stage == DONE:
            self._finish()
        elif stage == DEAD:
            return
        else:
            if stage == BODY:
                self.deadline = self._now() + self._idle_s
            # In BODY this bounds what is framing only: trailers, chunk extensions.
            if self._seen > self._max_head:
                self.fail(Fault.PROTOCOL, "the head, or what stands between two pieces of body, is too large")

    def eof_received(self) -> None:
        self._lost("closed by the engine", clean=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(f"{type(exc).__name__}: {exc}" if exc is not None else "closed", clean=False)
        # The parser holds our bound methods: without this every connection waits for the cycle collector.
        self._transport = self._parser = None
        self._pool.forget(self)

    # ---- the parser's side (called from inside feed_data)

    def on_message_begin(self) -> None:
        if self.stage == DONE:
            raise UnacceptableAnswer("bytes after the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        call, sink, parser = self.call, self._sink, self._parser
        if self.stage != HEAD or call is None or sink is None or parser is None:
            return
        status = parser.get_status_code()
        headers, self._headers = self._headers, []
        if len(headers) > self._config.max_headers:
            raise UnacceptableAnswer(f"more than {self._config.max_headers} headers")
        # Exact only where it matters: one read may bring a small head and 256 KiB of body.
        if self._seen > self._max_head and _size(headers) > self._max_head:
            raise UnacceptableAnswer(f"head larger than {self._max_head} bytes")
        if status < 200:
            self._skip_interim(status)
            return
        self._framed = _check_framing(headers)
        self._keep = parser.should_keep_alive()
        self._interim = 0
        self.stage = BODY
        call.head = call.body = b""  # no retry from here on; a stream may live for minutes, its request need not
        try:
            sink.on_head(status, headers)
        except Exception as error:
            self._give_up("on_head", error)

    def on_body(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:  # cancelled by the sink a moment ago, in this very read
            return
        self._seen = 0
        try:
            sink.on_body(data)
        except Exception as error:
            self._give_up("on_body", error)

    def on_message_complete(self) -> None:
        if self.stage == BODY:
            self.stage = DONE  # data_received finishes: only then is it known whether bytes follow

    # ---- inside

    def _finish(self) -> None:
        """The answer is whole: free the connection first, so that the sink may post again on it."""
        call, transport = self.call, self._transport
        if call is None or transport is None:
            return
        if self._headers:
            self._headers = []  # trailers: read, bounded, dropped
        self.call = self._sink = None
        # An answer that overtook its request (413, for one) leaves a connection with half a request in it.
        if self._keep and not transport.get_write_buffer_size() and not transport.is_closing():
            if call.paused:
                transport.resume_reading()
            self._reused = True
            self._pool.release(self)
        else:
            self.close()
        sink = call.end()
        if sink is not None:
            try:
                sink.on_end()
            except Exception as error:
                log_raised("on_end", error)

    def _lost(self, detail: str, *, clean: bool) -> None:
        call, stage = self.call, self.stage
        if call is None:
            self.close()
        elif stage == BODY and clean and not self._framed:
            self._keep = False  # no length was announced: the end of the connection is the end of the answer
            self._finish()
        elif stage == HEAD and self._reused and self._seen == 0:
            # The keep-alive race: the engine closed this idle connection while our request was on its way. It is no
            # failure of the engine, and not one byte of an answer was seen, so a new connection may try again; only
            # once, because that one is not reused.
            self.close()
            self._pool.retry(call)
        else:
            self.fail(Fault.CUT if stage == BODY else Fault.RESET, detail)

    def _skip_interim(self, status: int) -> None:
        self._interim += 1
        if status < 100 or self._interim > MAX_INTERIM:
            raise UnacceptableAnswer(f"status {status}, or more than {MAX_INTERIM} interim answers")

    def _give_up(self, callback: str, error: Exception) -> None:
        log_raised(callback, error)
        self.fail(Fault.CLOSED, f"{callback} raised {type(error).__name__}")


class UnacceptableAnswer(Exception):
    """Raised inside a parser callback to stop the parser; always caught in data_received."""


def log_raised(callback: str, error: Exception) -> None:
    """Log where a sink raised: type and place only, because the message of an error may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "unknown place"
    log.error("a sink's %s raised %s at %s", callback, type(error).__name__, place)


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _check_framing(headers: list[tuple[bytes, bytes]]) -> bool:
    """True when the end of the body can be known from the body itself; refuses encodings that we did not ask for."""
    framed = False
    for name, value in headers:
        if name in _WATCHED:
            if name == b"content-encoding":
                if value.strip().lower() not in (b"identity", b""):
                    raise UnacceptableAnswer("the answer is compressed although we did not ask for it")
                continue
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise UnacceptableAnswer("a transfer-encoding other than chunked")
            framed = True
    return framed
