"""The caller's connection against raw sockets: what is refused, in what words, and that everything else is in order."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from adapters.errors import ServiceError
from gateway.errors import Unauthenticated
from gateway.protocol import STRANGER_BYTES, Connection
from gateway.settings import Receive
from tests.scripted_server import deaf

HOST = b"host: x\r\n"


@dataclass
class Echo:
    """A handler that answers at once with what it got; `/hold` waits to be told."""

    connection: Connection
    path: bytes
    body: bytes
    plane: EchoPlane

    def begin(self) -> None:
        if self.path == b"/hold":
            self.plane.held.append(self)
            self.plane.holding.set()
        else:
            self.answer()

    def answer(self) -> None:
        body = self.path + b" " + self.body
        common = self.connection.common_headers()
        self.connection.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), common, body))
        self.connection.finish()

    def client_gone(self) -> None:
        self.plane.gone.set()

    def sweep(self, now: float) -> None: ...
    def client_paused(self) -> None: ...
    def client_resumed(self) -> None: ...
    def terminate(self, error: ServiceError) -> None: ...


@dataclass
class EchoPlane:
    seen: list[tuple[bytes, bytes]] = field(default_factory=list)
    held: list[Echo] = field(default_factory=list)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    streamed: Mapping[bytes, int] = field(default_factory=dict)

    def stranger(self, path: bytes, headers: Mapping[bytes, bytes]) -> ServiceError | None:
        return None if b"authorization" in headers else Unauthenticated("no key")

    def handler(
        self,
        connection: Connection,
        method: bytes,
        path: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes,
        now: float,
    ) -> Echo | None:
        self.seen.append((path, body))
        return None if path.startswith(b"/asgi") else Echo(connection, path, body, self)

    def render(self, path: bytes, error: ServiceError) -> bytes:
        body = orjson.dumps({"error": {"message": error.message, "code": error.code}})
        return b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n%b" % (error.status, len(body), body)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    body = scope["path"].encode() + b" " + message["body"]
    if body.startswith(b"/asgi-headers"):
        body += b" ".join(name for name, _ in scope["headers"])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Port:
    plane: EchoPlane
    state: ServerState
    port: int

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(self, data: bytes, *, eof: bool = False) -> bytes:
        """Send it, read until the server closes."""
        reader, writer = await self.open()
        writer.write(data)
        if eof:
            writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    def sweep(self, later: float) -> None:
        now = time.monotonic() + later
        for connection in list(self.state.connections):
            assert isinstance(connection, Connection)
            connection.sweep(now)


@asynccontextmanager
async def serving(**bounds: Any) -> AsyncIterator[Port]:
    config = Config(asgi, lifespan="off", log_config=None, access_log=False)
    config.load()
    state, plane = ServerState(), EchoPlane()
    factory = functools.partial(Connection, config, state, {}, plane=plane, bounds=Receive(**bounds))
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    try:
        yield Port(plane, state, server.sockets[0].getsockname()[1])
    finally:
        await deaf(server)
        server.close()
        for connection in list(state.connections):
            assert isinstance(connection, Connection)
            connection.transport.abort()
        await server.wait_closed()
        await asyncio.sleep(0)


BAD = {
    "two hosts": (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "absolute target": (b"GET http://evil/x HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "length and chunked": (
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", 400),
    "two equal lengths": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400),
    "odd transfer encoding": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "bare line feeds": (b"GET / HTTP/1.1\nhost: x\n\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
    "bad chunk": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    "two authorizations": (b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: a\r\nauthorization: b\r\n\r\n", 400),
    "not http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "gzip body": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nab", 415),
    "ten gigabytes": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n", 413),
    "endless length": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 30 + b"\r\n\r\n", 400),
    "long header": (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
    "long url": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
}


@pytest.mark.parametrize(("request_bytes", "status"), BAD.values(), ids=BAD.keys())
async def test_what_may_not_pass_is_refused_and_never_reaches_the_plane(request_bytes: bytes, status: int) -> None:
    async with serving() as port:
        answer = await port.talk(request_bytes)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert b"connection: close\r\n" in answer
        assert port.plane.seen == []


async def test_a_body_beyond_the_bound_is_refused_while_it_is_still_coming() -> None:
    async with serving(max_body_bytes=1000) as port:
        reader, writer = await port.open()
        writer.write(b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            writer.write(b"64\r\n" + b"a" * 100 + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        assert port.plane.seen == []
        writer.close()
        await writer.wait_closed()


async def test_the_refusal_arrives_although_megabytes_were_already_on_their_way() -> None:
    async with serving(max_body_bytes=1000) as port:
        reader, writer = await port.open()
        writer.write(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n" + b"a" * 3_000_000)
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    async with serving() as port:
        answer = await port.talk(
            b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"
            b"GET /asgi%41 HTTP/1.1\r\nhost: x\r\n\r\n"
            b"POST /3 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nc\r\n2\r\nde\r\n0\r\n\r\n"
            b"GET /4 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert [line for line in answer.split(b"\r\n") if line.startswith(b"/") or b"HTTP/1.1" in line] == [
            b"HTTP/1.1 200 OK", b"/1 abHTTP/1.1 200 OK", b"/asgiA HTTP/1.1 200 OK", b"/3 cdeHTTP/1.1 200 OK", b"/4 ",
        ]  # fmt: skip


async def test_an_offer_to_switch_protocols_is_ignored() -> None:
    async with serving() as port:
        answer = await port.talk(
            b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            b"http2-settings: AA\r\ncontent-length: 2\r\n\r\nab"
            b"GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert port.plane.seen == [(b"/a", b"ab"), (b"/b", b"")]
        assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_a_thousand_pipelined_requests_do_not_nest() -> None:
    async with serving() as port:
        last = b"GET /p HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answer = await port.talk(b"GET /p HTTP/1.1\r\nhost: x\r\n\r\n" * 1000 + last)
        assert answer.count(b"HTTP/1.1 200 OK") == 1001


async def test_few_requests_may_wait_behind_a_slow_one() -> None:
    async with serving() as port:
        reader, writer = await port.open()
        writer.write(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n" + b"GET /p HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        await port.plane.holding.wait()
        port.plane.held[0].answer()
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 OK") == 17
        writer.close()
        await writer.wait_closed()


async def test_a_byte_at_a_time_is_as_good_as_all_at_once() -> None:
    async with serving() as port:
        reader, writer = await port.open()
        writer.transport.set_write_buffer_limits(0)
        for byte in b"POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc":
            writer.write(bytes((byte,)))
            await writer.drain()
        assert (await reader.read()).endswith(b"/x abc")
        writer.close()
        await writer.wait_closed()


async def test_expect_continue_is_answered_before_the_body() -> None:
    async with serving() as port:
        reader, writer = await port.open()
        writer.write(
            b"POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"
        )
        assert await reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await reader.read()).endswith(b"/x abc")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "limit", "answer"),
    [
        (b"", 10.0, b""),
        (b"GET / HT", 10.0, b"HTTP/1.1 408 "),
        (b"GET / HTTP/1.1\r\nhost", 10.0, b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab", 60.0, b"HTTP/1.1 408 "),
    ],
)
async def test_what_is_not_sent_in_time_is_cut(sent: bytes, limit: float, answer: bytes) -> None:
    async with serving() as port:
        reader, writer = await port.open()
        writer.write(sent)
        while not port.state.connections:
            await asyncio.sleep(0)
        if sent:
            connection = next(iter(port.state.connections))
            assert isinstance(connection, Connection)
            while not (connection.in_head or connection.request):
                await asyncio.sleep(0)
        port.sweep(limit - 1)
        port.sweep(limit + 1)
        got = await reader.read()
        assert got.startswith(answer)
        assert bool(got) == bool(answer)
        writer.close()
        await writer.wait_closed()


async def test_an_idle_connection_lives_for_the_keep_alive_time() -> None:
    async with serving(keepalive_s=75) as port:
        reader, writer = await port.open()
        writer.write(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"/x ")
        port.sweep(70)
        writer.write(b"GET /y HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"/y ")
        port.sweep(80)
        assert await reader.read() == b""
        writer.close()


async def test_the_handler_hears_at_once_that_its_caller_is_gone() -> None:
    async with serving() as port:
        _, writer = await port.open()
        writer.write(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n")
        await port.plane.holding.wait()
        writer.transport.abort()
        await asyncio.wait_for(port.plane.gone.wait(), 30)
        assert not port.state.connections


async def test_no_more_connections_than_allowed() -> None:
    async with serving(max_connections=2) as port:
        first, second = await port.open(), await port.open()
        while len(port.state.connections) < 2:
            await asyncio.sleep(0)
        reader, third = await port.open()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        for writer in (first[1], second[1], third):
            writer.close()


async def test_half_closing_callers_still_get_their_answer() -> None:
    async with serving() as port:
        assert (await port.talk(b"GET /x HTTP/1.0\r\n\r\n")).endswith(b"/x ")


def post(path: bytes, body: bytes = b"", more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (path, more, len(body), body)


async def test_a_connection_goes_on_after_pipelined_requests() -> None:
    """Reading stops while requests wait, and has to begin again behind the last of them."""
    async with serving() as port:
        reader, writer = await port.open()
        for round in range(3):
            port.plane.holding.clear()
            writer.write(post(b"/hold") + post(b"/a") + post(b"/b"))
            await asyncio.wait_for(port.plane.holding.wait(), 5)
            port.plane.held[round].answer()
            for path in (b"/hold ", b"/a ", b"/b "):
                assert (await asyncio.wait_for(reader.readuntil(path), 5)).endswith(path)
        writer.close()
        await writer.wait_closed()


async def test_the_next_request_waits_until_the_answer_before_it_is_read() -> None:
    """Else answers that nobody reads would pile up in memory for as long as a stalled caller is borne."""
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, limit=4096)
        body, asked = b"x" * 60_000, 400
        for _ in range(asked):
            writer.write(post(b"/large", body))
        while not [one for one in port.state.connections if isinstance(one, Connection) and one.write_paused_at]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        before = len(port.plane.seen)
        await asyncio.sleep(0.05)
        assert len(port.plane.seen) == before < asked
        got = 0
        while got < asked:
            got += (await asyncio.wait_for(reader.readuntil(b"/large "), 5)).count(b"/large ")
            await reader.readexactly(len(body))
        assert len(port.plane.seen) == asked
        writer.close()
        await writer.wait_closed()


CHUNKED = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"


@pytest.mark.parametrize("begin", [b"0\r\nx: ", b"1;x="], ids=["a trailer", "a chunk extension"])
async def test_what_stands_between_pieces_of_a_body_is_bounded(begin: bytes) -> None:
    async with serving() as port:
        answer = await port.talk(CHUNKED + begin + b"y" * 200_000)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert port.plane.seen == []


async def test_trailers_are_dropped() -> None:
    """They come after the headers were checked: one could be a second authorization."""
    async with serving() as port:
        trailers = b"".join(b"x-%d: 1\r\n" % n for n in range(200)) + b"authorization: Bearer y\r\nhost: y\r\n"
        answer = await port.talk(CHUNKED.replace(b"/x", b"/asgi-headers") + b"0\r\n" + trailers + b"\r\n" + LAST)
        assert b"200 OK" in answer
        assert b"authorization" not in answer
        assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_large_bodies_are_taken_from_callers_with_a_key_only() -> None:
    """4,096 connections may hold 8 MiB each before anything is known of them but their headers."""
    large, key = b"a" * (STRANGER_BYTES + 1), b"authorization: k\r\n"
    async with serving() as port:
        assert (await port.talk(post(b"/x", large) + LAST)).startswith(b"HTTP/1.1 401 ")
        reader, writer = await port.open()
        writer.write(post(b"/x", large)[:-1].replace(b"content-length: 65537", b"content-length: 8000000") + b"aa")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 401 ")  # before the body is whole
        writer.close()
        await writer.wait_closed()
        assert port.plane.seen == []
        for request in (post(b"/x", large, key), post(b"/x", large[:-1])):
            assert (await port.talk(request + LAST)).startswith(b"HTTP/1.1 200 ")
    async with serving(max_body_bytes=STRANGER_BYTES + 10) as port:
        chunks = b"ffff\r\n" + b"a" * 0xFFFF + b"\r\n"
        request = CHUNKED.replace(b"host: x\r\n", b"host: x\r\n" + key) + chunks * 2
        assert (await port.talk(request)).startswith(b"HTTP/1.1 413 ")


LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
