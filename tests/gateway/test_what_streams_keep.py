"""What a stream holds while it lives and leaves when it ends: the engine's connection, and nothing of the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import CHAT, STREAMS, ask, at_rest, counted, quiet
from tests.gateway.running import Running
from tests.gateway.test_callers import MIB, Caller, talk, wire
from tests.scripted_server import Peer, Script, ScriptedServer


async def test_streams_use_one_connection_to_the_engine_after_another(engine: FakeVLLM, tmp_path: Path) -> None:
    """The end of the body comes behind the terminator, often in a packet of its own: it is worth waiting for."""
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway)
        (replica,) = gateway.started.gateway.proxy.fleet.replicas
        before = engine.accepted
        for path in STREAMS * 3:
            assert b"200 OK" in await talk(gateway, wire(key, path, ask(path, stream=True), "1.0"))
            async with asyncio.timeout(5):
                while replica.upstream.in_flight:
                    await asyncio.sleep(0)
        assert engine.accepted - before <= 1
        await at_rest(gateway)


@asynccontextmanager
async def scripted(engine: FakeVLLM, tmp_path: Path, script: Script) -> AsyncIterator[Running]:
    """A gateway whose engine, once it was found well, is replaced by a script of raw bytes."""
    async with ScriptedServer(script) as server, quiet(tmp_path, [engine]) as gateway:
        upstream = gateway.started.gateway.proxy.fleet.replicas[0].upstream
        await engine.close_idle()
        while upstream.open_connections:
            await asyncio.sleep(0)
        well, upstream._port = upstream._port, server.port
        yield gateway
        upstream._port = well
        await at_rest(gateway)


EVENT = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


async def test_an_engine_that_goes_on_after_its_last_word_is_cut(engine: FakeVLLM, tmp_path: Path) -> None:
    cut = asyncio.Event()

    async def babble(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + EVENT + b"data: [DONE]\n\n")
        try:
            while True:
                await peer.send(EVENT)
                await asyncio.sleep(0.001)
        finally:
            cut.set()

    async with scripted(engine, tmp_path, babble) as gateway:
        answer = await talk(gateway, wire(await counted(gateway), CHAT, ask(CHAT, stream=True), "1.0"))
        assert answer.endswith(b"data: [DONE]\n\n")
        await asyncio.wait_for(cut.wait(), 5)


async def test_a_stream_does_not_keep_what_was_asked(engine: FakeVLLM, tmp_path: Path) -> None:
    async def stall(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + EVENT)
        await peer.gone()

    async with scripted(engine, tmp_path, stall) as gateway:
        request = wire(await counted(gateway), CHAT, ask(CHAT, "x" * 4 * MIB, stream=True))
        before = psutil.Process().memory_info().rss
        async with AsyncExitStack() as callers:
            for _ in range(16):
                reader = await callers.enter_async_context(Caller(gateway, request))
                await reader.readuntil(b'"index":0')
            grown = psutil.Process().memory_info().rss - before
        assert grown < 16 * 4 * MIB, f"{grown / MIB:.0f} MiB for 16 prompts of 4 MiB"
