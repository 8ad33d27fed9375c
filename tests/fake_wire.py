"""HTTP/1.1 as the fake engine speaks it: what it saw, what it answers, and a connection that can also misbehave.

Knows bytes and sockets, nothing of models, adapters or faults. The head is written as uvicorn under vLLM 0.32.0
writes it (recorded): names in lower case, `date` and `server` first, `vary: Origin` after the content headers.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httptools

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request exactly as it arrived: header names keep the sender's case and order."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    keep_alive: bool = True

    @property
    def path(self) -> str:
        """The target without its query string."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first header of that name, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """The body parsed; raises ValueError when it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: a whole `body`, or `events` to be sent as chunks; `broken` = cut off after the last event."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = JSON
    events: list[bytes] | None = None
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("vary", "Origin")])
    broken: bool = False

    def head(self, *, keep_alive: bool, length: int | None = None, extra: tuple[tuple[str, str], ...] = ()) -> bytes:
        """Status line and headers; `length` None means chunked."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        pairs = [("date", email.utils.formatdate(usegmt=True)), ("server", "uvicorn")]
        pairs += [("content-length", str(length))] if length is not None else []
        pairs += [("content-type", self.content_type)] if self.content_type else []
        pairs += [*self.headers, *extra]
        pairs += [] if keep_alive else [("connection", "close")]
        pairs += [("transfer-encoding", "chunked")] if length is None else []
        lines += [f"{name}: {value}" for name, value in pairs]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body; of nothing, the last chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One accepted connection: parses requests, hands them on one at a time, cancels the work when the peer goes."""

    def __init__(
        self,
        serve: Callable[[Connection, Seen], Awaitable[None]],
        opened: Callable[[Connection], None],
        closed: Callable[[Connection, asyncio.Task[None] | None], None],
    ) -> None:
        self._serve, self._opened, self._closed = serve, opened, closed
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Seen] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self.task is not None:
            self.task.cancel()
        self._closed(self, self.task)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            body = b"Invalid HTTP request received."
            self.transport.write(Reply(400, content_type="text/plain").head(keep_alive=False, length=len(body)) + body)
            self.transport.close()

    # httptools calls these

    def on_message_begin(self) -> None:
        self._url, self._body = b"", bytearray()
        self._headers: list[tuple[str, str]] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        keep_alive = self._parser.should_keep_alive()
        self._waiting.append(Seen(method, self._url.decode("latin-1"), self._headers, bytes(self._body), keep_alive))
        self._next()

    def _next(self) -> None:
        if self.task is None and self._waiting:
            self.task = asyncio.ensure_future(self._serve(self, self._waiting.popleft()))
            self.task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not self.transport.is_closing():
            self._next()

    # what answers are made of

    @property
    def busy(self) -> bool:
        """A request is being answered."""
        return self.task is not None

    async def send(self, data: bytes) -> None:
        """Write, yield once so that every piece is a send of its own, and wait while the peer does not read."""
        self.transport.write(data)
        await asyncio.sleep(0)
        await self._writable.wait()

    async def reply(
        self, reply: Reply, *, keep_alive: bool = True, delay: float = 0.0, gate: asyncio.Event | None = None
    ) -> None:
        """The whole answer; `delay` seconds before every event; behind the second event, or before all, `gate`."""
        if reply.events is None:
            if gate is not None:
                await gate.wait()
            await self.send(reply.head(keep_alive=keep_alive, length=len(reply.body)) + reply.body)
        else:
            await self.send(reply.head(keep_alive=keep_alive))
            for at, event in enumerate(reply.events):
                if at == 2 and gate is not None:
                    await gate.wait()
                if delay:
                    await asyncio.sleep(delay)
                await self.send(chunk(event))
            if reply.broken:
                return self.abort()
            await self.send(chunk(b""))
        if not keep_alive:
            self.transport.close()
        return None

    def abort(self) -> None:
        """Close at once; nothing more is sent (a process that died looks like this)."""
        self.transport.abort()

    def reset(self) -> None:
        """Close with a TCP RST."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
