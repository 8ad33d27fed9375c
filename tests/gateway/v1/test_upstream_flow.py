"""The upstream client under flow: back-pressure, many at once, TLS, answers in pieces of any size."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.v1.upstream import Fault, UpstreamConfig
from tests.gateway.v1.upstream_harness import Clock, ask, client, on_both_loops, send, settled
from tests.scripted_server import OK, Peer, ScriptedServer, answering

MIB = 1 << 20


@pytest.mark.parametrize("paused_at", ["connecting", "body"])
@on_both_loops
async def test_a_paused_answer_is_held_back_in_the_engine_and_never_times_out(paused_at: str) -> None:
    clock = Clock()
    sent = 0
    total = 64 * MIB

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            await peer.send(b"z" * MIB)
            sent += MIB
        await peer.gone()

    async with ScriptedServer(script) as server, client(server.url, clock=clock) as upstream:
        sink, call = send(upstream)
        if paused_at == "body":
            await sink.fed.wait()
        call.pause()
        call.pause()
        await settled(lambda: sent > 0)
        held, before = len(sink.body), -1
        while before != sent:  # until the engine gets nothing more out
            before = sent
            await asyncio.sleep(0.05)
        assert len(sink.body) - held <= MIB  # at most one read was under way
        assert sent < total / 2  # what stands in the kernel's buffers, some MiB
        upstream.sweep(clock.now + 10_000)
        assert not sink.over.is_set()
        call.resume()
        clock.now += 1
        await sink.over.wait()
        assert (sink.fault, len(sink.body)) == (None, total)
        assert upstream.open_connections == 1


@on_both_loops
async def test_resume_starts_the_deadline_afresh() -> None:
    clock = Clock()
    async with (
        ScriptedServer(answering(OK[:-1], then_close=False)) as server,
        client(server.url, clock=clock) as upstream,
    ):
        sink, call = send(upstream)
        await sink.fed.wait()
        call.pause()
        clock.now += 1000
        call.resume()
        clock.now += 59
        upstream.sweep(clock.now)
        assert not sink.over.is_set()
        clock.now += 2
        upstream.sweep(clock.now)
        assert sink.fault is Fault.IDLE_TIMEOUT


@on_both_loops
async def test_paused_by_the_last_piece_the_connection_is_reused_reading() -> None:
    async with ScriptedServer(answering(OK, OK, then_close=False)) as server, client(server.url) as upstream:
        sink, call = send(upstream)
        sink.on_body = lambda data: call.pause()  # type: ignore[method-assign]
        await sink.over.wait()
        assert call.paused
        assert (await ask(upstream)).body == b"ok"
        assert server.connections == 1


@on_both_loops
async def test_a_thousand_at_once() -> None:
    async def script(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    config = UpstreamConfig(keepalive_s=3600)  # a thousand answers may take longer than the usual 4 s
    async with ScriptedServer(script) as server, client(server.url, config) as upstream:
        for _ in range(2):  # the second time on the connections of the first
            bodies = [b"request %d" % number for number in range(1000)]
            sinks = [send(upstream, body)[0] for body in bodies]
            assert upstream.in_flight == 1000
            for sink, body in zip(sinks, bodies, strict=True):
                await sink.over.wait()
                assert (sink.fault, sink.body) == (None, body), sink.faults
            assert upstream.in_flight == 0
        assert server.connections <= 1000
        assert upstream.open_connections == server.connections


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command is not installed, so no certificate can be made")
    return key, cert


def serving_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    return context


@on_both_loops
async def test_tls(certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=certificate[1])
    async with (
        ScriptedServer(answering(OK, OK, b""), tls=serving_context(certificate)) as server,
        client(server.url, tls=trusting) as upstream,
    ):
        assert (await ask(upstream)).body == b"ok"
        assert (await ask(upstream, b"L" * 500_000)).body == b"ok"
        assert server.connections == 1


@on_both_loops
async def test_tls_cancel_and_cut(certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=certificate[1])
    async with (
        ScriptedServer(answering(OK[:-1], then_close=False), tls=serving_context(certificate)) as server,
        client(server.url, tls=trusting) as upstream,
    ):
        sink, call = send(upstream)
        await sink.fed.wait()
        call.cancel()
        await settled(lambda: upstream.open_connections == 0 and server.live == 0)
    async with (
        ScriptedServer(answering(OK[:-1]), tls=serving_context(certificate)) as server,
        client(server.url, tls=trusting) as upstream,
    ):
        assert (await ask(upstream)).fault is Fault.CUT


@on_both_loops
async def test_tls_with_an_unknown_certificate_is_refused(certificate: tuple[Path, Path]) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append((await peer.request())[0])

    async with ScriptedServer(script, tls=serving_context(certificate)) as server, client(server.url) as upstream:
        assert (await ask(upstream)).fault is Fault.REFUSED
        await settled(lambda: upstream.open_connections == 0)
    assert seen == []


ANSWERS = [
    (OK, b"ok", True),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\ndata:\r\n1c;ext=1\r\n {\"choices\":[{\"index\":0}]}\n\n\r\n0\r\nx-trailer: t\r\n\r\n",
        b'data: {"choices":[{"index":0}]}\n\n', True,
    ),
    (b"HTTP/1.0 200 OK\r\n\r\nold and open", b"old and open", False),
]  # fmt: skip


@pytest.mark.parametrize("answer", range(len(ANSWERS)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_answer_in_any_pieces_is_the_same_answer(answer: int, data: st.DataObject) -> None:
    raw, body, kept = ANSWERS[answer]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=12)))
    pieces = [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    asyncio.run(_in_pieces(pieces, body, kept))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), answer=st.sampled_from([raw for raw, _, _ in ANSWERS]))
def test_any_bytes_have_exactly_one_outcome(data: st.DataObject, answer: bytes) -> None:
    position = data.draw(st.integers(0, len(answer)))
    removed = data.draw(st.integers(0, 20))
    raw = answer[:position] + data.draw(st.binary(max_size=20)) + answer[position + removed :]
    asyncio.run(_one_outcome(raw))


async def _one_outcome(raw: bytes) -> None:
    async with ScriptedServer(answering(raw)) as server, client(server.url) as upstream:
        sink = await ask(upstream)
        assert sink.ends + len(sink.faults) == 1
        assert (sink.status is not None) >= sink.ends
        await settled(lambda: upstream.open_connections == 0)


async def _in_pieces(pieces: list[bytes], body: bytes, kept: bool) -> None:
    async def script(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            for piece in pieces:
                await peer.send(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if not kept:
                return

    async with ScriptedServer(script) as server, client(server.url) as upstream:
        for _ in range(2):
            sink = await ask(upstream)
            assert (sink.fault, sink.status, sink.body) == (None, 200, body)
            assert {name for name, _ in sink.headers} <= {b"content-length", b"transfer-encoding", b"x-a"}
        assert server.connections == (1 if kept else 2)
