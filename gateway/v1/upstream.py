"""The HTTP/1.1 client to one engine replica: its pool of connections, its request heads, its sweep over deadlines.

Knows one URL and nothing of models, routing or JSON. Never reads a proxy variable, never follows a redirect,
never asks for a compressed answer. connection.py holds what happens on one socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ssl import SSLContext, create_default_context
from urllib.parse import urlsplit

from gateway.v1.connection import IDLE, Call, Connection, Fault, Sink, UpstreamConfig

__all__ = ["Call", "Fault", "Sink", "Upstream", "UpstreamConfig"]

JOIN_BYTES = 16384  # up to here head and body go out as one write: a copy costs less than a second write
MAX_PATHS = 64  # distinct paths whose request head is kept; the gateway itself has about ten


class Upstream:
    """One replica. Not thread-safe; lives on one event loop, and its owner calls `sweep` every 100-250 ms."""

    def __init__(
        self,
        url: str,
        config: UpstreamConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] | None = None,
        api_key: str | None = None,
        ssl: SSLContext | None = None,
        address: str | None = None,
    ) -> None:
        """`url` is http(s)://host[:port][/prefix]. Raises ValueError for others, or for an odd api_key.

        address: where to connect to; the host's name stays what the request and the certificate are about.
        """
        self.url = url
        self.config = config
        self.clock: Callable[[], float] = clock if clock is not None else loop.time
        self.in_flight = 0
        self._loop = loop
        self._host, self._port, self._authority, self._base, secure = _split(url)
        self._address = address if address is not None else self._host
        self._ssl = (ssl if ssl is not None else create_default_context()) if secure else None
        self._fixed = _fixed_headers(self._authority, api_key)
        self._heads: dict[str, bytes] = {}
        self._live: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # ordered: the last one freed is the first one used
        self._closed = False
        self._empty = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """Sockets that are open, being opened or being closed."""
        return len(self._live)

    def post(self, path: str, body: bytes, sink: Sink, request_id: str, begins_late: bool = False) -> Call:
        """Send a JSON body; all that follows reaches `sink`, later. Raises ValueError for an odd path or id.

        begins_late: the answer begins when all of it is generated; it has `answer_timeout_s` for that.
        """
        head = self._heads.get(path)
        if head is None:
            head = self._post_head(path)
        if not (request_id.isascii() and request_id.isprintable()):
            raise ValueError("request_id must be printable ASCII")
        first, rest = (body, b"") if len(body) <= JOIN_BYTES else (b"", body)
        wire = b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (head, request_id.encode(), len(body), first)
        timeout_s = self.config.answer_timeout_s if begins_late else self.config.first_byte_timeout_s
        return self._start(Call(self, sink, wire, rest, timeout_s))

    def get(self, path: str, sink: Sink) -> Call:
        """The same without a body, for probes."""
        head = b"%b\r\n" % self._head("GET", path)
        return self._start(Call(self, sink, head, b"", self.config.first_byte_timeout_s))

    def sweep(self, now: float) -> None:
        """Enforce every deadline passed at `now` (the clock's seconds): connect, first byte, idle, keep-alive."""
        for connection in tuple(self._live):  # a copy: a fault may make its sink post again
            if connection.deadline <= now:
                connection.expire()

    async def aclose(self, fault: Fault = Fault.CLOSED, why: str = "the gateway is shutting down") -> None:
        """Close idle connections, fault the others, and wait until every socket is closed."""
        self._closed = True
        for connection in tuple(self._live):
            connection.fail(fault, why)
        while self._live:
            self._empty.clear()
            await self._empty.wait()
        await asyncio.sleep(0)  # lets the refusals that `_start` has put on the loop reach their sinks

    # ---- called by Connection (connection.Pool)

    def release(self, connection: Connection) -> None:
        connection.stage = IDLE
        connection.deadline = self.clock() + self.config.keepalive_s
        self._idle[connection] = None

    def retire(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        self._live.discard(connection)
        if not self._live:
            self._empty.set()

    def retry(self, call: Call) -> None:
        if self._closed:
            call.fail(Fault.CLOSED, "the gateway is shutting down")
        else:
            self._connect(call)  # not counted against max_connections: it takes the place of the one that is closing

    # ---- inside

    def _start(self, call: Call) -> Call:
        self.in_flight += 1
        idle = self._idle
        if idle:
            connection = idle.popitem()[0]
            now = self.clock()
            if connection.deadline > now:
                connection.send(call, now)
                return call
            connection.close()  # the freshest is too old, so all are; the sweep closes the others
        if self._closed:
            self._loop.call_soon(call.fail, Fault.CLOSED, "the gateway is shutting down")
        elif len(self._live) >= self.config.max_connections:
            detail = f"all {self.config.max_connections} connections to this replica are in use"
            self._loop.call_soon(call.fail, Fault.POOL_FULL, detail)
        else:
            self._connect(call)
        return call

    def _connect(self, call: Call) -> None:
        connection = Connection(self, call)
        call.connection = connection
        self._live.add(connection)
        # The only task of this client, once per connection. The host name is resolved anew each time.
        name = self._host if self._ssl is not None else None
        dialling = self._loop.create_connection(
            lambda: connection, self._address, self._port, ssl=self._ssl, server_hostname=name
        )
        connection.task = task = self._loop.create_task(dialling)
        task.add_done_callback(connection.dialled)  # a callback: a task cancelled before its first step runs nothing

    def _post_head(self, path: str) -> bytes:
        head = self._head("POST", path) + b"content-type: application/json\r\nx-request-id: "
        if len(self._heads) < MAX_PATHS:
            self._heads[path] = head
        return head

    def _head(self, method: str, path: str) -> bytes:
        target = self._base + path
        if not path.startswith("/") or not target.isascii() or not target.isprintable() or " " in target:
            raise ValueError("a path begins with / and holds printable ASCII without spaces")
        return b"%b %b HTTP/1.1\r\n%b" % (method.encode(), target.encode(), self._fixed)


def _split(url: str) -> tuple[str, int, str, str, bool]:
    """host, port, authority for the Host header, path prefix, https?"""
    parts = urlsplit(url)
    host, secure = parts.hostname, parts.scheme == "https"
    clean = url.isascii() and url.isprintable() and not any(c in url for c in " @?#")
    if not clean or parts.scheme not in ("http", "https") or not host:
        raise ValueError("an engine URL looks like http://host:8000 or https://host/prefix, without user or query")
    return host, parts.port or (443 if secure else 80), parts.netloc, parts.path.rstrip("/"), secure


def _fixed_headers(authority: str, api_key: str | None) -> bytes:
    fixed = f"host: {authority}\r\n"
    if api_key is not None:
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            raise ValueError("the engine's api key must be printable ASCII")
        fixed += f"authorization: Bearer {api_key}\r\n"
    return fixed.encode()
