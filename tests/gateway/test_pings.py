"""A silent stream is kept alive by comments; a caller of the old protocol still sees its end."""

from __future__ import annotations

import asyncio
import time

import orjson

from gateway.protocol import Connection
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.running import Running


def request(key: str, version: str = "1.1", extra: str = "") -> bytes:
    body = orjson.dumps({"model": "demo-base", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {key}\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def connection(gateway: Running) -> Connection:
    handlers = [c for c in gateway.started.connections() if isinstance(c, Connection) and c.handler is not None]
    assert len(handlers) == 1
    return handlers[0]


async def test_a_stream_that_stalls_is_pinged_and_still_ends_in_order(gateway: Running, engine: FakeVLLM) -> None:
    engine.script(Fault.STALL_BETWEEN)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.started.public_port)
    writer.write(request(await gateway.key()))
    await reader.readuntil(b"data: ")
    busy = connection(gateway)
    busy.sweep(time.monotonic() + 14)
    busy.sweep(time.monotonic() + 16)
    busy.sweep(time.monotonic() + 17)
    got = await reader.readuntil(b": ping\n\n")
    assert got.count(b": ping") == 1
    writer.close()
    await writer.wait_closed()
    await engine.idle()


async def test_an_old_caller_that_asks_to_keep_the_connection_still_sees_the_streams_end(gateway: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.started.public_port)
    writer.write(request(await gateway.key(), "1.0", "connection: keep-alive\r\n"))
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.endswith(b"data: [DONE]\n\n")
    assert b"connection: close\r\n" in answer
    writer.close()
    await writer.wait_closed()
