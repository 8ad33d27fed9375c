"""Bodies that an app reads as they come, at the level of the connection: order, bounds, early answers, leaving."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.protocol import Connection
from gateway.settings import Receive
from gateway.streamed import WAITING_BYTES
from tests.gateway.test_protocol import EchoPlane
from tests.scripted_server import deaf

UP = b"/asgi/up"
LIMIT = 5_000_000
HEAD = b"POST /asgi/up HTTP/1.1\r\nhost: x\r\nauthorization: k\r\n"


@dataclass
class App:
    """Reads a body piece by piece, when it may; answers with its length and digest."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    enough: int | None = None  # answers after so many bytes, without reading the rest
    largest: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.began.set()
        total, digest, more = 0, hashlib.sha256(), True
        while more and (self.enough is None or total < self.enough):
            await self.may_read.wait()
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            total += len(message["body"])
            self.largest = max(self.largest, len(message["body"]))
            digest.update(message["body"])
            more = message["more_body"]
        body = f"{scope['path']} {total} {digest.hexdigest()[:8]};".encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def answer_to(body: bytes) -> bytes:
    return f"/asgi/up {len(body)} {hashlib.sha256(body).hexdigest()[:8]};".encode()


@dataclass
class Port:
    app: App
    plane: EchoPlane
    state: ServerState
    port: int

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(self, data: bytes) -> bytes:
        reader, writer = await self.open()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


@asynccontextmanager
async def serving(*, reads: bool = True, enough: int | None = None, **bounds: Any) -> AsyncIterator[Port]:
    app = App(enough=enough)
    if reads:
        app.may_read.set()
    config = Config(app, lifespan="off", log_config=None, access_log=False)
    config.load()
    state, plane = ServerState(), EchoPlane(streamed={UP: LIMIT})
    factory = functools.partial(Connection, config, state, {}, plane=plane, bounds=Receive(**bounds))
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    try:
        yield Port(app, plane, state, server.sockets[0].getsockname()[1])
    finally:
        await deaf(server)
        server.close()
        app.may_read.set()
        for connection in list(state.connections):
            assert isinstance(connection, Connection)
            connection.transport.abort()
        await server.wait_closed()
        while state.tasks:
            await asyncio.sleep(0.005)


def sized(body: bytes, more: bytes = b"connection: close\r\n") -> bytes:
    return HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body


async def test_a_body_larger_than_any_other_arrives_whole_also_in_chunks_and_byte_by_byte() -> None:
    large = bytes(range(256)) * 8000
    async with serving(max_body_bytes=1000) as port:
        assert answer_to(large) in await port.talk(sized(large))
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(large[i : i + 999]), large[i : i + 999]) for i in range(0, 99_900, 999)
        )
        answer = await port.talk(
            HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        )
        assert answer_to(large[:99_900]) in answer
        reader, writer = await port.open()
        for byte in sized(b"abc"):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(answer_to(b"abc"))
        writer.close()
        await writer.wait_closed()
        assert answer_to(b"") in await port.talk(sized(b""))


async def test_requests_before_and_behind_a_streamed_one_keep_their_order() -> None:
    body = b"x" * 200_000
    async with serving() as port:
        answer = await port.talk(
            b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"
            + sized(body, b"")
            + b"GET /3 HTTP/1.1\r\nhost: x\r\n\r\n"
            + sized(b"yz", b"")
            + b"GET /5 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        places = [answer.index(said) for said in (b"/1 ab", answer_to(body), b"/3 ", answer_to(b"yz"), b"/5 ")]
        assert places == sorted(places)
        assert answer.count(b"HTTP/1.1 200 OK") == 5


async def test_a_streamed_body_behind_an_answer_that_takes_its_time_waits_unread() -> None:
    body = b"x" * 3_000_000
    async with serving() as port:
        reader, writer = await port.open()
        writer.write(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n" + sized(body))
        await port.plane.holding.wait()
        assert not port.app.began.is_set()
        (connection,) = port.state.connections
        assert isinstance(connection, Connection)
        async with asyncio.timeout(30):
            while not connection.flow.read_paused:
                await asyncio.sleep(0.005)
        assert len(connection.waiting) == 1
        port.plane.held[0].answer()
        assert (await reader.read()).endswith(answer_to(body))
        writer.close()
        await writer.wait_closed()


async def test_an_app_that_does_not_read_is_sent_no_more_than_a_little() -> None:
    body = b"x" * 4_500_000
    async with serving(reads=False) as port:
        reader, writer = await port.open()
        writer.write(sized(body))
        await port.app.began.wait()
        (connection,) = port.state.connections
        assert isinstance(connection, Connection)
        async with asyncio.timeout(30):
            while not connection.flow.read_paused:
                await asyncio.sleep(0.005)
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert connection.cycle is not None
            assert len(connection.cycle.body) <= WAITING_BYTES + 256 * 1024
        port.app.may_read.set()
        assert (await reader.read()).endswith(answer_to(body))
        assert port.app.largest <= WAITING_BYTES + 256 * 1024
        writer.close()
        await writer.wait_closed()


async def test_an_answer_before_the_end_of_the_body_arrives_and_the_rest_is_thrown_away() -> None:
    body = b"x" * 4_500_000
    async with serving(enough=1000) as port:
        reader, writer = await port.open()
        writer.write(sized(body, b"") + b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n")
        await writer.drain()  # all of it can be sent
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 OK") == 1
        assert b"/asgi/up " in answer
        assert port.plane.seen == [(UP, b"")]
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(30):
            while port.state.connections:
                await asyncio.sleep(0.005)


async def test_whoever_goes_on_sending_after_an_answer_is_cut_in_the_end() -> None:
    async with serving(enough=1) as port:
        reader, writer = await port.open()
        writer.write(HEAD + b"content-length: 4000000\r\n\r\n" + b"x" * 1000)
        assert b"200 OK" in await reader.readline()
        (connection,) = port.state.connections
        assert isinstance(connection, Connection)
        async with asyncio.timeout(30):
            while connection.lingers_until is None:
                await asyncio.sleep(0.005)
        connection.sweep(connection.lingers_until - 0.1)
        assert port.state.connections
        connection.sweep(connection.lingers_until + 0.1)
        async with asyncio.timeout(30):
            while port.state.connections:
                await asyncio.sleep(0.005)
        writer.close()


@pytest.mark.parametrize("broken", [False, True], ids=["left", "broken chunks"])
async def test_an_app_hears_of_a_caller_that_left(broken: bool) -> None:
    async with serving() as port:
        _, writer = await port.open()
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n")
        await port.app.began.wait()
        if broken:
            writer.write(b"zz\r\n")
        else:
            writer.close()
        await asyncio.wait_for(port.app.left.wait(), 30)
        writer.close()


async def test_strangers_and_what_is_announced_too_large_never_reach_the_app() -> None:
    async with serving() as port:
        stranger = sized(b"x" * 100_000).replace(b"authorization: k\r\n", b"")
        assert b"HTTP/1.1 401 " in await port.talk(stranger)
        assert b"HTTP/1.1 401 " in await port.talk(sized(b"").replace(b"authorization: k\r\n", b""))
        assert b"HTTP/1.1 413 " in await port.talk(HEAD + b"content-length: %d\r\n\r\n" % (LIMIT + 1))
        assert not port.app.began.is_set()


async def test_one_that_expects_to_be_told_so_is_told_and_http_1_0_is_answered() -> None:
    async with serving() as port:
        reader, writer = await port.open()
        writer.write(HEAD + b"expect: 100-continue\r\nconnection: close\r\ncontent-length: 3\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")
        writer.write(b"abc")
        assert (await reader.read()).endswith(answer_to(b"abc"))
        writer.close()
        await writer.wait_closed()
        assert answer_to(b"abc") in await port.talk(sized(b"abc", b"").replace(b"HTTP/1.1", b"HTTP/1.0"))


async def test_other_methods_on_the_path_are_as_ever() -> None:
    async with serving(max_body_bytes=1000) as port:
        answer = await port.talk(HEAD.replace(b"POST", b"PUT") + b"connection: close\r\ncontent-length: 3\r\n\r\nabc")
        assert answer.endswith(answer_to(b"abc"))
        too_much = HEAD.replace(b"POST", b"PUT") + b"content-length: 1001\r\n\r\n"
        assert b"HTTP/1.1 413 " in await port.talk(too_much)
