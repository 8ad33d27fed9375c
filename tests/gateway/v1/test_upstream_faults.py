"""The fault matrix of the upstream client: what the engine does, and what the sink is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from gateway.v1.upstream import Fault, UpstreamConfig
from tests.gateway.v1.upstream_harness import Clock, ask, client, on_both_loops, send, settled
from tests.scripted_server import OK, Peer, Script, ScriptedServer, answering

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
OPEN_END = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"


async def reset_at_once(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def reset_in_body(peer: Peer) -> None:
    await peer.request()
    await peer.send(OPEN_END + b"some")
    await asyncio.sleep(0.05)  # lets the bytes arrive before the RST, which would overtake them
    peer.reset()


async def endless_head(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await peer.send(b"x-filler: " + b"a" * 1000 + b"\r\n")


async def endless_header_name(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await peer.send(b"a" * 4000)


async def endless_trailers(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED + b"2\r\nok\r\n0\r\n")
    while True:
        await peer.send(b"x-filler: " + b"a" * 1000 + b"\r\n")


def headers(count: int) -> bytes:
    return b"".join(b"x-%d: a\r\n" % number for number in range(count))


@dataclass(frozen=True)
class Row:
    """One behaviour of the engine. `fault` None: the answer is whole, with this status and body."""

    name: str
    script: Script
    fault: Fault | None = None
    status: int | None = None
    body: bytes = b""
    reused: bool = False


ROWS = [
    Row("whole", answering(OK, then_close=False), None, 200, b"ok", reused=True),
    Row("reset before the head", reset_at_once, Fault.RESET),
    Row("closed before the head", answering(b""), Fault.RESET),
    Row("half a head", answering(b"HTTP/1.1 200 OK\r\ncontent-"), Fault.RESET),
    Row("garbage", answering(b"\x00\x01SSH-2.0-server\r\n", then_close=False), Fault.PROTOCOL),
    Row("bare line feeds", answering(b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok"), Fault.PROTOCOL),
    Row("endless head", endless_head, Fault.PROTOCOL),
    Row("endless header name", endless_header_name, Fault.PROTOCOL),
    Row("large head in one piece", answering(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 33000 + b"\r\n\r\n"), Fault.PROTOCOL),
    Row("101 headers", answering(b"HTTP/1.1 200 OK\r\n" + headers(101) + b"\r\n"), Fault.PROTOCOL),
    Row("100 headers", answering(b"HTTP/1.1 204 OK\r\n" + headers(100) + b"\r\n"), None, 204),
    Row("closed after the head", answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"), Fault.CUT, 200),
    Row("short body", answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"), Fault.CUT, 200, b"short"),
    Row("cut inside a chunk", answering(CHUNKED + b"a\r\nhalf"), Fault.CUT, 200, b"half"),
    Row("cut between chunks", answering(CHUNKED + b"4\r\nhalf\r\n"), Fault.CUT, 200, b"half"),
    Row("cut before the last line", answering(CHUNKED + b"4\r\nhalf\r\n0\r\n"), Fault.CUT, 200, b"half"),
    Row("bad chunk size", answering(CHUNKED + b"2\r\nok\r\nzz\r\n"), Fault.PROTOCOL, 200, b"ok"),
    Row("chunk longer than it says", answering(CHUNKED + b"2\r\nlong\r\n"), Fault.PROTOCOL, 200, b"lo"),
    Row("both framings", answering(CHUNKED[:-2] + b"content-length: 2\r\n\r\nok"), Fault.PROTOCOL),
    Row("two lengths", answering(OK[:-4] + b"content-length: 3\r\n\r\nok"), Fault.PROTOCOL),
    Row("unknown transfer-encoding", answering(OPEN_END[:-2] + b"transfer-encoding: br\r\n\r\n"), Fault.PROTOCOL),
    Row("endless trailers", endless_trailers, Fault.PROTOCOL, 200, b"ok"),
    Row("chunked", answering(CHUNKED + b"2\r\nok\r\n1\r\n!\r\n0\r\n\r\n", then_close=False), None, 200, b"ok!", True),
    Row("trailers", answering(CHUNKED + b"2\r\nok\r\n0\r\na: b\r\n\r\n", then_close=False), None, 200, b"ok", True),
    Row("ended by closing", answering(OPEN_END + b"to the end"), None, 200, b"to the end"),
    Row("ended by closing, empty", answering(OPEN_END), None, 200),
    Row("to be ended by closing, reset", reset_in_body, Fault.CUT, 200, b"some"),
    Row("continue first", answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK), None, 200, b"ok"),
    Row("hints first", answering(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 8 + OK), None, 200, b"ok"),
    Row("interim flood", answering(b"HTTP/1.1 102 Processing\r\n\r\n" * 9 + OK), Fault.PROTOCOL),
    Row("upgrade", answering(b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"), Fault.PROTOCOL),
    Row("status 099", answering(b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n"), Fault.PROTOCOL),
    Row("no content", answering(b"HTTP/1.1 204 No Content\r\n\r\n", then_close=False), None, 204, b"", True),
    Row("not modified", answering(b"HTTP/1.1 304 Not Modified\r\n\r\n", then_close=False), None, 304, b"", True),
    Row(
        "compressed",
        answering(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b"),
        Fault.PROTOCOL,
    ),
    Row(
        "identity",
        answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\ncontent-length: 2\r\n\r\nok", then_close=False),
        None, 200, b"ok", True,
    ),
    Row("bytes after the answer", answering(OK + b"HTTP/1.1 500 Odd\r\n\r\n", then_close=False), None, 200, b"ok"),
    Row("one byte after the answer", answering(OK + b"H", then_close=False), None, 200, b"ok"),
    Row("garbage after the answer", answering(OK + b"\x00", then_close=False), None, 200, b"ok"),
    Row(
        "connection: close",
        answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\nok", then_close=False),
        None, 200, b"ok",
    ),
    Row("HTTP/1.0", answering(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", then_close=False), None, 200, b"ok"),
    Row(
        "HTTP/1.0 kept alive",
        answering(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", then_close=False),
        None, 200, b"ok", True,
    ),
    Row("HTTP/1.0 ended by closing", answering(b"HTTP/1.0 200 OK\r\n\r\nold"), None, 200, b"old"),
    Row("error page", answering(b"HTTP/1.1 502 Bad\r\ncontent-length: 4\r\n\r\noops"), None, 502, b"oops"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@on_both_loops
async def test_matrix(row: Row) -> None:
    async with ScriptedServer(row.script) as server, client(server.url) as upstream:
        sink = await ask(upstream)
        assert (sink.fault, sink.status, sink.body) == (row.fault, row.status, row.body), sink.faults
        assert sink.ends == (row.fault is None)
        assert upstream.in_flight == 0
        if row.reused:
            assert upstream.open_connections == 1
        else:
            await settled(lambda: upstream.open_connections == 0)
        assert server.connections == 1  # nothing that failed on a fresh connection was tried again


@on_both_loops
async def test_refused() -> None:
    async with ScriptedServer(answering(OK)) as server:
        url = server.url
    async with client(url) as upstream:
        sink, _ = send(upstream)
        assert not sink.over.is_set()  # never from inside post
        await sink.over.wait()
        assert sink.fault is Fault.REFUSED
        assert upstream.open_connections == 0


@on_both_loops
async def test_unknown_host_is_refused() -> None:
    async with client("http://no-such-host.invalid:1") as upstream:
        assert (await ask(upstream)).fault is Fault.REFUSED


@on_both_loops
async def test_redirect_is_delivered_and_not_followed() -> None:
    async with ScriptedServer(answering(OK)) as canary:
        location = f"HTTP/1.1 307 Moved\r\nlocation: {canary.url}/\r\ncontent-length: 0\r\n\r\n".encode()
        async with ScriptedServer(answering(location)) as server, client(server.url) as upstream:
            sink = await ask(upstream)
        assert (sink.status, sink.ends, canary.connections) == (307, 1, 0)


@on_both_loops
async def test_slow_connect() -> None:
    clock = Clock()

    async def never(peer: Peer) -> None:
        await peer.gone()

    # A TLS client against a server that never speaks: connected, but not through.
    async with ScriptedServer(never) as server, client(server.url.replace("http", "https"), clock=clock) as upstream:
        sink, _ = send(upstream)
        await settled(lambda: server.connections == 1)
        upstream.sweep(clock.now + 4.9)
        assert not sink.over.is_set()
        upstream.sweep(clock.now + 5.1)
        assert sink.fault is Fault.CONNECT_TIMEOUT
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nx: "], ids=["nothing", "half a head"])
@on_both_loops
async def test_stall_before_the_head(first: bytes) -> None:
    clock = Clock()
    async with (
        ScriptedServer(answering(first, then_close=False)) as server,
        client(server.url, clock=clock) as upstream,
    ):
        sink, _ = send(upstream)
        await settled(lambda: server.connections == 1)
        upstream.sweep(clock.now + 119)
        assert not sink.over.is_set()
        upstream.sweep(clock.now + 121)
        assert sink.fault is Fault.FIRST_BYTE_TIMEOUT
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)


@on_both_loops
async def test_stall_in_the_body() -> None:
    clock = Clock()
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\none\r\n")
        await go_on.wait()
        await peer.send(b"3\r\ntwo\r\n")
        await peer.gone()

    async with ScriptedServer(script) as server, client(server.url, clock=clock) as upstream:
        sink, _ = send(upstream)
        await sink.fed.wait()
        clock.now += 50
        upstream.sweep(clock.now)
        go_on.set()  # 50 s after the first piece: the deadline starts afresh
        await settled(lambda: sink.body == b"onetwo")
        clock.now += 50
        upstream.sweep(clock.now)
        assert not sink.over.is_set()
        clock.now += 11
        upstream.sweep(clock.now)
        assert (sink.fault, sink.body) == (Fault.IDLE_TIMEOUT, b"onetwo")
        await settled(lambda: server.live == 0)


@on_both_loops
async def test_small_head_with_large_body_in_one_read_is_no_large_head() -> None:
    body = b"z" * 200_000
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    config = UpstreamConfig(max_head_bytes=200)
    async with ScriptedServer(answering(whole)) as server, client(server.url, config) as upstream:
        sink = await ask(upstream)
        assert (sink.fault, sink.body) == (None, body)
