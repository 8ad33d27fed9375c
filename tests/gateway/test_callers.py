"""Callers that leave, stall, pipeline or speak HTTP/1.0: nothing is held for them, nothing goes on behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.plane import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    MODEL,
    RESPONSES,
    ROUTES,
    SAID,
    STREAMS,
    ask,
    at_rest,
    counted,
    error_of,
    events,
    quiet,
    usage,
)
from tests.gateway.running import Running

MIB = 1 << 20


def wire(key: str, path: str, body: Any, version: str = "1.1", more: str = "") -> bytes:
    """One request as bytes."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    return f"{head}{more}content-length: {len(payload)}\r\n\r\n".encode() + payload


class Caller:
    """One raw connection that has sent something; the block's end is where its caller leaves."""

    def __init__(self, gateway: Running, data: bytes) -> None:
        self._gateway, self._data = gateway, data

    async def __aenter__(self) -> asyncio.StreamReader:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._gateway.started.public_port)
        self._writer.write(self._data)
        return self._reader

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def talk(gateway: Running, data: bytes) -> bytes:
    """Send it and read to the end of the connection."""
    async with Caller(gateway, data) as reader:
        return await reader.read()


async def test_who_leaves_before_anything_came_leaves_nothing_behind(engine: FakeVLLM, tmp_path: Path) -> None:
    engine.script(Fault.STALL_BEFORE_HEAD, times=len(STREAMS) * 2 + 1)
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway)
        asked = [wire(key, path, ask(path, stream=stream)) for path in STREAMS for stream in (False, True)]
        asked.append(wire(key, EMBEDDINGS, ask(EMBEDDINGS)))
        async with contextlib.AsyncExitStack() as callers:
            for request in asked:
                await callers.enter_async_context(Caller(gateway, request))
            await engine.working(len(asked))
            assert gateway.started.gateway.proxy.admission.in_flight == len(asked)
        await asyncio.wait_for(engine.idle(), 30)
        assert engine.aborted == len(asked)
        await at_rest(gateway)
        assert await gateway.metric("loragate_client_closed_total") == len(asked)
        assert await gateway.metric("loragate_requests_total", code="499", route="chat") == 2


async def test_an_aborted_stream_is_charged_what_was_generated(engine: FakeVLLM, tmp_path: Path) -> None:
    """`after` events hold four words; prompt tokens are the engine's where it said them, else the guess."""
    async with quiet(tmp_path, [engine]) as gateway:
        for path, after in ((CHAT, 5), (COMPLETIONS, 4), (RESPONSES, 8), (MESSAGES, 6)):
            engine.script(Fault.STALL_BETWEEN, after=after)
            key = await counted(gateway)
            async with Caller(gateway, wire(key, path, ask(path, stream=True))) as reader:
                while b"three" not in await reader.readline():
                    pass
            await asyncio.wait_for(engine.idle(), 30)
            await at_rest(gateway)
            (row,) = await usage(gateway, key=key.split("-")[1])
            assert row["completion_tokens"] == 4, path
            if path != RESPONSES:
                assert row["prompt_tokens"] == len(SAID.split()), path
        assert await gateway.metric("loragate_tokens_total", model=MODEL, kind="completion") == 16


async def test_an_aborted_whole_answer_keeps_its_reservation(engine: FakeVLLM, tmp_path: Path) -> None:
    engine.script(Fault.SLOW, delay=30)
    async with quiet(tmp_path, [engine]) as gateway:
        request = wire(await counted(gateway), CHAT, ask(CHAT, max_tokens=100, n=2))
        async with Caller(gateway, request):
            await engine.working(1)
        await asyncio.wait_for(engine.idle(), 30)
        await at_rest(gateway)
        (row,) = await usage(gateway)
        assert row["completion_tokens"] == 200


async def test_a_hundred_callers_leave_at_random(engine: FakeVLLM, tmp_path: Path) -> None:
    chance = random.Random(20261123)
    engine.script(Fault.SLOW, times=None, delay=0.004)
    said = " ".join(f"word{n}" for n in range(60))
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway)

        async def visit() -> None:
            path, lines = chance.choice(STREAMS), chance.randrange(80)
            body = ask(path, said, stream=chance.random() < 0.8)
            async with Caller(gateway, wire(key, path, body, more="connection: close\r\n")) as reader:
                for _ in range(lines):
                    await asyncio.wait_for(reader.readline(), 30)

        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(visit())
        await asyncio.wait_for(engine.idle(), 30)
        assert engine.aborted >= 20
        await at_rest(gateway)
        assert sum(row["requests"] for row in await usage(gateway)) == 100


async def test_a_stalled_reader_is_cut_and_costs_little_memory(engine: FakeVLLM, tmp_path: Path) -> None:
    engine.script(Fault.HUGE_BODY, times=None, size=128 * MIB)
    bounds = {"write_idle_timeout_s": 0.5}
    async with quiet(tmp_path, [engine], receive=bounds, upstream={"max_answer_bytes": 1 << 30}) as gateway:
        key = await counted(gateway)
        before = psutil.Process().memory_info().rss
        stalled = []
        for at in range(8):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.started.public_port))
            await asyncio.get_running_loop().sock_sendall(sock, wire(key, CHAT, ask(CHAT, stream=at % 2 == 0)))
            stalled.append(sock)
        await engine.working(8)
        await asyncio.wait_for(engine.idle(), 30)
        grown = psutil.Process().memory_info().rss - before
        for sock in stalled:
            sock.close()
        assert engine.aborted == 8
        assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB for 1 GiB that nobody read"
        await at_rest(gateway)


async def test_a_slow_reader_gets_every_byte(engine: FakeVLLM, tmp_path: Path) -> None:
    engine.script(Fault.HUGE_BODY, size=12 * MIB)
    async with quiet(tmp_path, [engine]) as gateway:
        got, last = 0, b""
        async with Caller(gateway, wire(await counted(gateway), CHAT, ask(CHAT, stream=True), "1.0")) as reader:
            while data := await reader.read(256 * 1024):
                got += data.count(b'"delta"')
                last = data[-20:]
                await asyncio.sleep(0.0005)
        assert got > 30_000
        assert got % 256 == 0, "the fake engine sends them 256 at a time"
        assert last.endswith(b"data: [DONE]\n\n")
        await at_rest(gateway)


async def test_pipelined_requests_are_answered_in_their_order(engine: FakeVLLM, tmp_path: Path) -> None:
    engine.script(Fault.SLOW, delay=0.01)  # the first is the slowest
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway)
        asked = [
            wire(key, CHAT, ask(CHAT, "alpha", stream=True)),
            wire(key, CHAT, ask(CHAT, "beta")),
            f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode(),
            wire(key, CHAT, b"{"),
            wire("wrong", MESSAGES, ask(MESSAGES)),
            wire(key, MESSAGES, ask(MESSAGES, "gamma"), more="connection: close\r\n"),
        ]
        answer = await talk(gateway, b"".join(asked))
        marks = [b"alpha", b"[DONE]", b"beta", b'"object":"list"', b"invalid_json", b"authentication_error", b"gamma"]
        places = [answer.find(mark) for mark in marks]
        assert -1 not in places
        assert places == sorted(places)
        assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"200", b"200", b"400", b"401", b"200"]
        await at_rest(gateway)


async def test_an_http_1_0_caller_gets_plain_bytes_and_the_end(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway)
        for stream in (False, True):
            head, _, body = (await talk(gateway, wire(key, CHAT, ask(CHAT, stream=stream), "1.0"))).partition(
                b"\r\n\r\n"
            )
            assert b"transfer-encoding" not in head
            assert b"connection: close" in head
            if stream:
                assert events(body)[-1] == ("", "[DONE]")
            else:
                assert json.loads(body)["choices"][0]["message"]["content"] == f"{MODEL}: {SAID}"
        engine.script(Fault.CUT_MID_STREAM)
        _, _, body = (await talk(gateway, wire(key, CHAT, ask(CHAT, stream=True), "1.0"))).partition(b"\r\n\r\n")
        assert events(body)[-1][1]["error"]["code"] == "upstream_disconnected"
        await at_rest(gateway)


async def test_refusals_of_the_connection_speak_the_routes_language(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine], receive={"max_body_bytes": 2000}) as gateway:
        key = await counted(gateway)
        for path in (*ROUTES, "/v1/elsewhere"):
            declared = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n".encode()
            chunks = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
            chunked = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode() + chunks * 3
            encoded = wire(key, path, ask(CHAT), more="content-encoding: gzip\r\n")
            doubled = wire(key, path, ask(CHAT), more="authorization: Bearer other\r\n")
            for request, status, code in (
                (declared, 413, "request_too_large"),
                (chunked, 413, "request_too_large"),
                (encoded, 415, "unsupported_media_type"),
                (doubled, 400, "invalid_value"),
            ):
                head, _, body = (await talk(gateway, request)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 %d " % status), (path, head)
                assert b"connection: close" in head
                assert b"x-request-id: req-" in head
                error = error_of(path, json.loads(body))
                assert path.startswith(MESSAGES) or error["code"] == code
        assert engine.inferences == []
        await at_rest(gateway)


async def test_only_our_headers_reach_the_engine_and_only_ours_come_back(tmp_path: Path) -> None:
    odd = {f"x-vendor-{n}": "canary" for n in range(25)} | {
        "x-request-id": "canary", "x-forwarded-for": "1.2.3.4", "x-forwarded-host": "canary", "forwarded": "for=1",
        "traceparent": "00-canary-1", "cookie": "a=canary", "x-api-key": "canary", "openai-organization": "canary",
        "x-stainless-retry-count": "1", "proxy-authorization": "canary", "te": "trailers", "via": "canary",
        "accept-encoding": "gzip, br", "user-agent": "canary", "expect": "", "range": "bytes=0-1", "accept": "canary",
        "x-http-method-override": "DELETE", "x-original-url": "/admin", "origin": "https://canary.example",
    }  # fmt: skip
    async with FakeVLLM(api_key="engine-secret") as engine:
        settings = {"engines": [{"url": engine.url, "api_key": "engine-secret"}]}
        async with quiet(tmp_path, [engine], **settings) as gateway:
            key = await counted(gateway)
            odd["authorization"] = f"Bearer {key}"
            async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http:
                for stream in (False, True):
                    answer = await http.post(CHAT + "?x=canary", json=ask(CHAT, stream=stream), headers=odd)
                    assert answer.status_code == 200, answer.text
                    seen = engine.inferences[-1]
                    assert [name for name, _ in seen.headers] == [
                        "host", "authorization", "content-type", "x-request-id", "content-length"
                    ]  # fmt: skip
                    assert seen.header("authorization") == "Bearer engine-secret"
                    assert seen.header("x-request-id") == answer.headers["x-request-id"]
                    assert seen.target == CHAT
                    assert not [value for _, value in seen.headers if "canary" in value]
                    own = {"content-type", "x-request-id", "x-loragate-model", "date"}
                    own |= {"transfer-encoding", "cache-control", "x-accel-buffering"} if stream else {"content-length"}
                    assert set(answer.headers) == own
            await at_rest(gateway)


VLLM_PATHS = """
/ /health /ping /load /version /metrics /server_info /is_sleeping /sleep /wake_up /tokenize /detokenize /tokenizer_info
/pooling /classify /score /v1/score /rerank /v1/rerank /v2/rerank /v2/embed /invocations /pause /resume /is_paused
/update_weights /init_weight_transfer_engine /get_world_size /collective_rpc /abort_requests /reset_prefix_cache
/reset_mm_cache /reset_encoder_cache /start_profile /stop_profile /scale_elastic_ep /is_scaling_elastic_ep
/v1/load_lora_adapter /v1/unload_lora_adapter /v1/audio/transcriptions /v1/audio/translations /v1/realtime
/v1/chat/completions/render /v1/completions/render /v1/chat/completions/batch /inference/v1/generate /generate
/generative_scoring /v1/responses/resp_1 /v1/responses/resp_1/cancel /docs /openapi.json /redoc /derender
/v1/messages/batches /v1/batches/x /admin/v1/keys /admin/v1/status /admin/v1/adapters //v1/chat/completions
/v1/chat/completions/ /v1/../admin/v1/keys /v1/%63hat/completions /V1/chat/completions /v1/models/../../metrics
"""


async def test_nothing_else_of_the_engine_or_of_the_admin_port_is_reachable(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        key, before = await counted(gateway), len(engine.requests)
        for path in VLLM_PATHS.split():
            for method in ("GET", "POST"):
                request = wire(key, path, ask(CHAT), more="connection: close\r\n").replace(b"POST", method.encode(), 1)
                head, _, body = (await talk(gateway, request)).partition(b"\r\n\r\n")
                known = "%63" in path or (path.startswith("/v1/models") and method == "POST")
                assert head[9:12] == (b"405" if known else b"404"), (method, path, head)
                error_of(CHAT, json.loads(body))
        for path in ROUTES:
            for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"):
                request = wire(key, path, b"", more="connection: close\r\n").replace(b"POST", method.encode(), 1)
                answer = await talk(gateway, request)
                assert answer[9:12] == b"405", (method, path)
                assert b"\r\nallow: POST\r\n" in answer, (method, path)
        assert len(engine.requests) == before
        await at_rest(gateway)
