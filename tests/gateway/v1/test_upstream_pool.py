"""The pool of the upstream client: reuse, the keep-alive race, limits, cancelling, closing, sinks that raise."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import AsyncExitStack

import pytest

from gateway.v1.upstream import Call, Fault, Upstream, UpstreamConfig
from tests.gateway.v1.upstream_harness import PATH, Clock, RecordingSink, ask, client, on_both_loops, send, settled
from tests.scripted_server import OK, Peer, ScriptedServer, answering

PIECE = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"


async def silent(peer: Peer) -> None:
    await peer.gone()


async def endless(peer: Peer) -> None:
    await peer.request()
    await peer.send(PIECE)
    await peer.gone()


async def forever(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


async def forever_but_once(peer: Peer) -> None:
    await peer.request()
    await peer.send(OK)
    await peer.request()
    await asyncio.Event().wait()


@on_both_loops
async def test_the_request_on_the_wire() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    async with ScriptedServer(script) as server:
        async with client(server.url + "/prefix/", api_key="engine-key") as upstream:
            await ask(upstream, b'{"a":1}')
            await ask(upstream, b"x" * 100_000)
            sink = RecordingSink()
            upstream.get("/health", sink)
            await sink.over.wait()
        host = server.url.removeprefix("http://").encode()
    assert server.connections == 1
    assert seen[0][0].split(b"\r\n") == [
        b"POST /prefix/v1/chat/completions HTTP/1.1", b"host: " + host, b"authorization: Bearer engine-key",
        b"content-type: application/json", b"x-request-id: rid-1", b"content-length: 7", b"", b"",
    ]  # fmt: skip
    assert [body for _, body in seen] == [b'{"a":1}', b"x" * 100_000, b""]
    assert seen[2][0].split(b"\r\n") == [
        b"GET /prefix/health HTTP/1.1", b"host: " + host, b"authorization: Bearer engine-key", b"", b"",
    ]  # fmt: skip


@on_both_loops
async def test_the_last_freed_connection_is_used_first() -> None:
    asked: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            asked.append(peer.number)
            await peer.send(OK)

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        both = [send(upstream)[0], send(upstream)[0]]
        for sink in both:
            await sink.over.wait()
        assert (server.connections, upstream.open_connections) == (2, 2)
        for _ in range(5):
            await ask(upstream)
        assert server.connections == 2
        assert len(set(asked[2:])) == 1


@on_both_loops
async def test_idle_connections_close_after_their_time() -> None:
    clock = Clock()
    async with ScriptedServer(forever) as server, client(server.url, clock=clock) as upstream:
        await ask(upstream)
        upstream.sweep(clock.now + 3.9)
        assert upstream.open_connections == 1
        upstream.sweep(clock.now + 4.1)
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)
        await ask(upstream)
        clock.now += 5  # a late sweep does not matter: one too old is not used either
        await ask(upstream)
        assert server.connections == 3


@pytest.mark.parametrize("how", ["close", "reset"])
@on_both_loops
async def test_stale_connection_is_retried_once_on_a_new_one(how: str) -> None:
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        _, body = await peer.request()
        await peer.send(OK)
        if peer.number:
            bodies.append(body)
            return
        await peer.request()  # the second request reaches the engine at the moment that it closes
        if how == "reset":
            peer.reset()

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        await ask(upstream)
        for body in (b"small", b"L" * 300_000):
            if not bodies:
                sink = await ask(upstream, body)
                assert (sink.fault, sink.body, bodies) == (None, b"ok", [body])
        assert server.connections == 2


@on_both_loops
async def test_only_one_retry() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(OK)
            await peer.request()

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        await ask(upstream)
        assert (await ask(upstream)).fault is Fault.RESET
        assert server.connections == 2


@on_both_loops
async def test_no_retry_after_the_first_byte() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        await ask(upstream)
        assert (await ask(upstream)).fault is Fault.RESET
        assert server.connections == 1


@on_both_loops
async def test_a_retry_that_cannot_connect_is_refused() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ScriptedServer(forever_but_once))
        upstream = await stack.enter_async_context(client(server.url))
        await ask(upstream)
        sink, _ = send(upstream)
        await server.__aexit__(None, None, None)  # stops listening, and only then closes the kept connection
        await sink.over.wait()
        assert (sink.fault, upstream.in_flight) == (Fault.REFUSED, 0)


@pytest.mark.parametrize("unsolicited", [b"HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n", b"\r\n"])
@on_both_loops
async def test_bytes_on_an_idle_connection_drop_it(unsolicited: bytes) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await go_on.wait()
            await peer.send(unsolicited)
        await peer.gone()

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        await ask(upstream)
        go_on.set()
        await settled(lambda: upstream.open_connections == 0)
        sink = await ask(upstream)
        assert (sink.status, server.connections) == (200, 2)


@on_both_loops
async def test_early_answer_to_a_large_body() -> None:
    late = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.send(late if peer.number == 0 else OK)
        if peer.number == 0:
            await asyncio.Event().wait()  # neither reads nor closes

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        sink = await ask(upstream, b"L" * 30_000_000)
        assert (sink.status, sink.body, sink.ends) == (413, b"no", 1)
        await settled(lambda: upstream.open_connections == 0)  # the rest of the request is not waited for
        assert (await ask(upstream)).status == 200
        assert server.connections == 2


@on_both_loops
async def test_pool_full() -> None:
    async with ScriptedServer(endless) as server, client(server.url, UpstreamConfig(max_connections=2)) as upstream:
        running = [send(upstream) for _ in range(2)]
        third, _ = send(upstream)
        assert not third.over.is_set()
        fourth, call = send(upstream)
        call.cancel()
        await third.over.wait()
        assert third.fault is Fault.POOL_FULL
        assert not fourth.over.is_set()
        assert upstream.in_flight == 2
        await running[0][0].fed.wait()
        running[0][1].cancel()
        await settled(lambda: upstream.open_connections == 1)
        fifth, _ = send(upstream)
        await fifth.fed.wait()


@pytest.mark.parametrize("steps", range(8))
@on_both_loops
async def test_cancel_while_connecting(steps: int) -> None:
    """After 0 to 7 turns of the loop: dialling, half made, made."""
    async with ScriptedServer(endless) as server, client(server.url) as upstream:
        sink, call = send(upstream)
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        call.cancel()
        assert upstream.in_flight == 0
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)
        assert not sink.over.is_set()


@on_both_loops
async def test_cancel_before_the_head() -> None:
    async with ScriptedServer(silent) as server, client(server.url) as upstream:
        sink, call = send(upstream)
        await settled(lambda: server.live == 1)
        call.cancel()
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)
        assert (sink.status, sink.over.is_set(), upstream.in_flight) == (None, False, 0)


@on_both_loops
async def test_cancel_in_the_body() -> None:
    async with ScriptedServer(endless) as server, client(server.url) as upstream:
        sink, call = send(upstream)
        await sink.fed.wait()
        call.cancel()
        assert upstream.in_flight == 0
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)
        assert not sink.over.is_set()


@on_both_loops
async def test_cancel_after_the_end_leaves_the_next_request_alone() -> None:
    async with ScriptedServer(forever) as server, client(server.url) as upstream:
        sink, call = send(upstream)
        await sink.over.wait()
        second, _ = send(upstream)
        call.cancel()
        call.pause()
        call.resume()
        await second.over.wait()
        assert (second.body, server.connections, upstream.in_flight) == (b"ok", 1, 0)


class CancellingSink(RecordingSink):
    """Cancels its own call from inside a callback, while more of the answer stands in the same read."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at
        self.call: Call | None = None

    def cancel_at(self, stage: str) -> None:
        if stage == self.at and self.call is not None:
            self.call.cancel()

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().on_head(status, headers)
        self.cancel_at("head")

    def on_body(self, data: bytes) -> None:
        super().on_body(data)
        self.cancel_at("body")


@pytest.mark.parametrize(("at", "seen"), [("head", b""), ("body", b"one")])
@on_both_loops
async def test_cancel_from_inside_a_callback(at: str, seen: bytes) -> None:
    async with ScriptedServer(answering(PIECE + b"3\r\ntwo\r\n0\r\n\r\n")) as server, client(server.url) as upstream:
        sink = CancellingSink(at)
        sink.call = upstream.post(PATH, b"{}", sink, "rid")
        await sink.headed.wait()
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)
        assert (sink.body, sink.over.is_set(), upstream.in_flight) == (seen, False, 0)


class RaisingSink(RecordingSink):
    """Raises from one of its callbacks, after having recorded it."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().on_head(status, headers)
        if self.at == "head":
            raise RuntimeError("a prompt")

    def on_body(self, data: bytes) -> None:
        super().on_body(data)
        if self.at == "body":
            raise RuntimeError("a prompt")

    def on_end(self) -> None:
        super().on_end()
        if self.at == "end":
            raise RuntimeError("a prompt")

    def on_fault(self, fault: Fault, detail: str) -> None:
        super().on_fault(fault, detail)
        if self.at == "fault":
            raise RuntimeError("a prompt")


@pytest.mark.parametrize(("at", "fault"), [("head", Fault.CLOSED), ("body", Fault.CLOSED), ("end", None)])
@on_both_loops
async def test_a_sink_that_raises_harms_only_itself(at: str, fault: Fault | None) -> None:
    async with ScriptedServer(forever) as server, client(server.url, logged=1) as upstream:
        sink = RaisingSink(at)
        upstream.post(PATH, b"{}", sink, "rid")
        await sink.over.wait()
        assert (sink.fault, sink.ends) == (fault, int(fault is None))
        assert "prompt" not in str(sink.faults)
        sound = await ask(upstream)
        assert (sound.body, server.connections) == (b"ok", 1 + (fault is not None))


@on_both_loops
async def test_on_fault_that_raises_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    async with ScriptedServer(answering(b"")) as server, client(server.url, logged=1) as upstream:
        sink = RaisingSink("fault")
        upstream.post(PATH, b"{}", sink, "rid")
        await sink.over.wait()
    assert "on_fault raised RuntimeError" in caplog.text
    assert "prompt" not in caplog.text


@on_both_loops
async def test_a_sink_may_post_from_on_end() -> None:
    class Chain(RecordingSink):
        left = 20

        def on_end(self) -> None:
            self.left -= 1
            if self.left:
                self.status = None
                upstream.post(PATH, b"{}", self, "rid")
            else:
                super().on_end()

    async with ScriptedServer(forever) as server, client(server.url) as upstream:
        sink = Chain()
        upstream.post(PATH, b"{}", sink, "rid")
        await sink.over.wait()
        assert (sink.body, server.connections) == (b"ok" * 20, 1)


@on_both_loops
async def test_aclose_faults_what_runs_and_refuses_what_comes() -> None:
    async with ScriptedServer(endless) as server:
        async with client(server.url) as upstream:
            body, _ = send(upstream)
            await body.fed.wait()
            dialling, _ = send(upstream)
            await upstream.aclose()
            late, _ = send(upstream)
            await upstream.aclose()
            assert [sink.fault for sink in (body, dialling, late)] == [Fault.CLOSED] * 3
            assert (upstream.open_connections, upstream.in_flight) == (0, 0)
        await settled(lambda: server.live == 0)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "h:80",
        "http://u:p@h",
        "http://h/?q=1",
        "http://h/#f",
        "http://h\r\n",
        "http://h:99999",
        "http://é",
    ],
)
@on_both_loops
async def test_odd_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Upstream(url, UpstreamConfig(), loop=asyncio.get_running_loop())


@on_both_loops
async def test_no_header_injection() -> None:
    async with client("http://127.0.0.1:9") as upstream:
        with pytest.raises(ValueError, match="request_id"):
            upstream.post(PATH, b"", RecordingSink(), "a\r\nx: y")
        with pytest.raises(ValueError, match="path"):
            upstream.post("/v1 HTTP/1.1\r\n", b"", RecordingSink(), "rid")
        with pytest.raises(ValueError, match="api key"):
            Upstream("http://h", UpstreamConfig(), loop=asyncio.get_running_loop(), api_key="a\r\nb")
        assert upstream.in_flight == 0


async def test_proxy_variables_are_not_read() -> None:
    async with ScriptedServer(answering(OK)) as canary, ScriptedServer(answering(OK)) as server:
        proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), canary.url)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK_ONCE, server.url, env={**os.environ, **proxies, "PYTHONPATH": os.getcwd()}
        )
        assert await child.wait() == 0
        assert (canary.connections, server.connections) == (0, 1)


ASK_ONCE = """
import asyncio, sys
from tests.gateway.v1.upstream_harness import ask, client

async def main() -> None:
    async with client(sys.argv[1]) as upstream:
        assert (await ask(upstream)).status == 200

asyncio.run(main())
"""


@on_both_loops
async def test_a_sink_may_post_from_on_fault_during_a_sweep() -> None:
    class Again(RecordingSink):
        def on_fault(self, fault: Fault, detail: str) -> None:
            super().on_fault(fault, detail)
            again.append(send(upstream)[0])

    again: list[RecordingSink] = []
    clock = Clock()
    async with ScriptedServer(silent) as server, client(server.url, clock=clock) as upstream:
        for _ in range(5):
            upstream.post(PATH, b"{}", Again(), "rid")
        await settled(lambda: server.live == 5)
        upstream.sweep(clock.now + 121)
        assert (len(again), upstream.in_flight) == (5, 5)
        assert not any(sink.over.is_set() for sink in again)


@on_both_loops
async def test_interim_answers_are_counted_for_each_answer() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" * 6 + OK
    async with ScriptedServer(answering(answer, answer, then_close=False)) as server, client(server.url) as upstream:
        assert [(await ask(upstream)).body for _ in range(2)] == [b"ok", b"ok"]
        assert server.connections == 1


@on_both_loops
async def test_trailers_do_not_become_headers_of_the_next_answer() -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-trailer: t\r\n\r\n"
    async with ScriptedServer(answering(answer, OK, then_close=False)) as server, client(server.url) as upstream:
        await ask(upstream)
        assert (await ask(upstream)).headers == [(b"content-length", b"2")]
        assert server.connections == 1


@on_both_loops
async def test_what_is_kept_is_bounded() -> None:
    async with ScriptedServer(endless) as server, client(server.url) as upstream:
        sink, call = send(upstream, b"L" * 100_000)
        await sink.fed.wait()
        assert call.head + call.body == b""  # a stream does not hold its request
        for number in range(200):
            upstream.post(f"/{number}", b"", RecordingSink(), "rid").cancel()
        assert len(upstream._heads) <= 64


@on_both_loops
async def test_small_writes_are_not_delayed() -> None:
    async with ScriptedServer(forever) as server, client(server.url) as upstream:
        await ask(upstream)
        (transport,) = [connection._transport for connection in upstream._live]
        assert transport is not None
        sock = transport.get_extra_info("socket")  # without it the tail of a large body waits for a delayed ACK
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@on_both_loops
async def test_ipv6_literal() -> None:
    server = ScriptedServer(answering(OK), host="::1")
    try:
        await server.__aenter__()
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    try:
        async with client(server.url) as upstream:
            assert (await ask(upstream)).status == 200
    finally:
        await server.__aexit__(None, None, None)
