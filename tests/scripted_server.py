"""A raw TCP server that plays one script per connection: the engine that does every wrong thing on purpose.

It speaks bytes, not HTTP, so that a script can break any rule. `fake_vllm.py` is the engine that behaves.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """The server's end of one connection, as a script sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.number = number  # 0 for the server's first connection
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request. Raises IncompleteReadError when the client is gone instead."""
        head = await self.head()
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head, await self._reader.readexactly(length)

    async def head(self) -> bytes:
        """The head alone; its body stays unread."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def send(self, data: bytes) -> None:
        """Write, and wait until the kernel has taken most of it."""
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Return once the client has closed or reset the connection."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            return

    def shut(self) -> None:
        """Close the sending half: the client reads an end of file, we can still read."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Send RST instead of FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """Plays `script` on each connection and closes it when the script returns. Use as an async context manager."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._script = script
        self._tls = tls
        self._host = host
        self._server: asyncio.Server | None = None
        self._plays: set[asyncio.Task[None]] = set()
        self.connections = 0  # ever accepted
        self.errors: list[BaseException] = []  # a script's own mistakes; raised at exit
        self.port = 0

    @property
    def live(self) -> int:
        """Connections whose script still runs."""
        return len(self._plays)

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await deaf(self._server)
        self._server.close()
        for play in tuple(self._plays):
            play.cancel()
        await asyncio.gather(*self._plays, return_exceptions=True)
        if self.errors and error is None:
            raise self.errors[0]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        play = asyncio.current_task()
        assert play is not None
        self._plays.add(play)
        peer = Peer(reader, writer, self.connections)
        self.connections += 1
        try:
            await self._script(peer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went, or the test ends
        except BaseException as mistake:
            self.errors.append(mistake)
        finally:
            self._plays.discard(play)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def deaf(server: asyncio.Server) -> None:
    """Before a server is closed: it accepts no more, and what it has accepted is a connection, as tests can close it.

    That takes two turns of the loop, and asyncio loses whose server is closed meanwhile (3.11; `Server._attach`).
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(3):
        await asyncio.sleep(0)


def answering(*answers: bytes, then_close: bool = True) -> Script:
    """A script that answers one request with each of `answers`, then closes (or waits for the client to)."""

    async def script(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            await peer.send(answer)
        if not then_close:
            await peer.gone()

    return script
