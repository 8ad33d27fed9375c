"""A vLLM look-alike that costs next to nothing: answers are bytes made beforehand, requests are never fully parsed.

Knows vLLM's routes and the shape of its chunks; knows nothing of the peers. Runs as a process of its own
(`python bench/mock_engine.py`) and says `listening PORT` on stdout. Each streamed token carries the moment it
was sent (CLOCK_MONOTONIC ns, the same clock in every process), so the reader knows how long it was on its way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop

MODEL = "bench-base"
ANSWER_BYTES = 430
HEAD = b"HTTP/1.1 200 OK\r\ndate: Mon, 02 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
STREAM_HEAD = HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *(\d+)")
STREAMED = re.compile(rb'"stream": ?true')


def answer(body: bytes, kind: bytes = b"application/json", status: bytes | None = None) -> bytes:
    """A whole HTTP answer around `body`."""
    head = HEAD if status is None else HEAD.replace(b"200 OK", status)
    return head + b"content-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body)) + body


def chat_body(size: int = ANSWER_BYTES) -> bytes:
    """vLLM's non-streamed chat completion, `size` bytes long."""

    def body(text: str) -> bytes:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 56, "total_tokens": 96, "completion_tokens": 40}
        found = {"id": "chatcmpl-" + "0" * 32, "object": "chat.completion", "created": 1793620800, "model": MODEL}
        return json.dumps({**found, "choices": [choice], "usage": usage}, separators=(",", ":")).encode()

    return body("x" * (size - len(body(""))))


CHAT = answer(chat_body())
TEXT = answer(
    b'{"id":"cmpl-0","object":"text_completion","created":1793620800,"model":"%b","choices":[{"index":0,"text":"x",'
    b'"finish_reason":"length"}],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}' % MODEL.encode()
)
CHUNK = (
    b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":1793620800,"model":"%b",'
    b'"choices":%%b%%b}\n\n'
) % (b"0" * 32, MODEL.encode())
FIRST = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
TOKEN = b'[{"index":0,"delta":{"content":"@%d@"},"logprobs":null,"finish_reason":%b,"token_ids":null}]'
USAGE = b',"usage":{"prompt_tokens":56,"total_tokens":%d,"completion_tokens":%d}'


@dataclass(slots=True)
class Settings:
    """What the process was started with, and the adapters loaded since."""

    gap_s: float = 0.02
    tokens: int = 100
    adapters: dict[str, str] = field(default_factory=dict)

    def models(self) -> bytes:
        common = {"object": "model", "created": 1793620800, "owned_by": "vllm"}
        base = {"id": MODEL, **common, "root": MODEL, "parent": None, "max_model_len": 32768}
        rows = [{"id": name, **common, "root": path, "parent": MODEL} for name, path in self.adapters.items()]
        return json.dumps({"object": "list", "data": [base, *rows]}).encode()


class Stream:
    """One streamed answer: a token every `gap_s`, counted from its own start so that lateness does not add up."""

    def __init__(self, transport: asyncio.Transport, settings: Settings, body: bytes) -> None:
        options = json.loads(body).get("stream_options") or {}
        self._usage = bool(options.get("include_usage"))
        self._each = bool(options.get("continuous_usage_stats")) and self._usage
        self._transport, self._gap, self._tokens = transport, settings.gap_s, settings.tokens
        self._loop = asyncio.get_running_loop()
        self._started, self._sent = self._loop.time(), 0
        self._timer = self._loop.call_at(self._started + self._gap, self._step)

    def cancel(self) -> None:
        self._timer.cancel()

    def _event(self, choices: bytes, usage: bytes) -> bytes:
        event = CHUNK % (choices, usage)
        return b"%x\r\n%b\r\n" % (len(event), event)

    def _step(self) -> None:
        self._sent += 1
        usage = USAGE % (56 + self._sent, self._sent) if self._each else b""
        last = self._sent == self._tokens
        out = self._event(TOKEN % (time.monotonic_ns(), b'"stop"' if last else b"null"), usage)
        if self._sent == 1:
            out = STREAM_HEAD + self._event(FIRST, USAGE % (56, 0) if self._each else b"") + out
        if last:
            if self._usage:
                out += self._event(b"[]", USAGE % (56 + self._sent, self._sent))
            out += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        else:
            self._timer = self._loop.call_at(self._started + self._gap * (self._sent + 1), self._step)
        self._transport.write(out)


class Connection(asyncio.Protocol):
    """One keep-alive connection; a request ends where its content-length says."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buffer = b""
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            length = LENGTH.search(data, 0, end)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(data) < stop:
                break
            self._answer(data[: data.find(b" HTTP/1.", 0, end)], data[end + 4 : stop])
            data = data[stop:]
        self._buffer = data

    def _answer(self, line: bytes, body: bytes) -> None:
        if line == b"POST /v1/chat/completions":
            if STREAMED.search(body):
                self._stream = Stream(self._transport, self._settings, body)
            else:
                self._transport.write(CHAT)
        else:
            self._transport.write(other(self._settings, line, body))


def other(settings: Settings, line: bytes, body: bytes) -> bytes:
    """The routes that are not hot: what gateways and routers probe, and vLLM's adapter routes."""
    if line == b"POST /v1/completions":
        return TEXT
    if line == b"GET /v1/models":
        return answer(settings.models())
    if line == b"GET /version":
        return answer(b'{"version":"0.32.0"}')
    if line in (b"GET /health", b"GET /ping", b"GET /metrics"):
        return answer(b"", b"text/plain")
    if line == b"POST /v1/load_lora_adapter":
        asked = json.loads(body)
        settings.adapters[asked["lora_name"]] = asked["lora_path"]
        return answer(b"Success: LoRA adapter added.", b"text/plain")
    if line == b"POST /v1/unload_lora_adapter":
        settings.adapters.pop(json.loads(body)["lora_name"], None)
        return answer(b"Success: LoRA adapter removed.", b"text/plain")
    return answer(b'{"detail":"Not Found"}', status=b"404 Not Found")


async def serve(settings: Settings, port: int) -> None:
    """Listen on loopback until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    server = await loop.create_server(lambda: Connection(settings), "127.0.0.1", port, backlog=1024)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between tokens")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of a streamed answer")
    flags = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Settings(flags.gap, flags.tokens), flags.port))


if __name__ == "__main__":
    main()
