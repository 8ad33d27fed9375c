"""The load generator: raw keep-alive connections, closed loop, Poisson arrivals, or SSE streams.

Knows HTTP and the shape of OpenAI's chunks; knows nothing of the peers. At a fixed arrival rate latency is
counted from the moment a request was due, so a slow peer cannot hide its queue (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

CONTENT = re.compile(rb'"content": ?"(?:@(\d+)@|[^"@])')
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
DONE = re.compile(rb"data: ?\[DONE\]")
REQUEST_BYTES = 300


class LoadFailed(Exception):
    """The load could not be run to its end; the message says how far it got."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer answers and with what key."""

    port: int
    key: str | None = None
    host: str = "127.0.0.1"

    def request(self, body: bytes, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
        """A whole HTTP request with the headers an SDK would send."""
        bearer = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\naccept: application/json\r\n"
            f"user-agent: loragate-bench\r\n{bearer}content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True)
class Plan:
    """One load: `connections` at once until `seconds` are over, or at `rate` per second, or `streams` in all."""

    connections: int
    seconds: float = 0.0
    rate: float | None = None
    streams: int | None = None
    limit_s: float = 60.0  # the load is given up after this long
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What a load saw. Times in seconds; `peer_cpu_s` and `own_cpu_s` were spent while it ran."""

    completed: int = 0
    failed: int = 0
    seconds: float = 0.0
    peer_cpu_s: float = 0.0
    own_cpu_s: float = 0.0
    tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    token_delay: list[float] = field(default_factory=list)


def chat_request(model: str, *, stream: bool = False, size: int = REQUEST_BYTES) -> bytes:
    """A chat body of `size` bytes."""

    def body(text: str) -> bytes:
        messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}]
        asked = {"model": model, "messages": messages, "max_tokens": 128, "temperature": 0.0, "stream": stream}
        return json.dumps(asked, separators=(",", ":")).encode()

    return body("y" * (size - len(body(""))))


class Exchange(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self.busy = self.open = self.ended = False
        self.tokens, self.due, self.first = 0, 0.0, 0.0
        self.delays: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._load.lost(self)

    def send(self, request: bytes, due: float) -> None:
        """Start a request that was due at `due` (time.monotonic)."""
        self.busy, self.due, self.first = True, due, 0.0
        self.tokens, self._tail, self.delays = 0, b"", []
        self.ended = False
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        if not self._load.streaming:
            return
        now = time.monotonic_ns()
        text = self._tail + body
        end = 0
        for match in CONTENT.finditer(text):
            end = match.end()
            self.tokens += 1
            if match[1]:
                self.delays.append((now - int(match[1])) / 1e9)
        if self.tokens and not self.first:
            self.first = now / 1e9
        if DONE.search(text):
            self.ended = True
            counted = COMPLETION_TOKENS.findall(text)
            self.tokens = int(counted[-1]) if counted else self.tokens
        self._tail = text[max(end, len(text) - 400) :]  # an event may be cut anywhere; usage comes just before [DONE]

    def on_message_complete(self) -> None:
        if self.busy:
            good = self._parser.get_status_code() == 200 and (self.ended or not self._load.streaming)
            self.busy = False
            self._load.finished(self, good)


class Load:
    """Runs one plan against one endpoint. `requests` are whole HTTP requests, sent in turn."""

    def __init__(
        self, endpoint: Endpoint, requests: tuple[bytes, ...], plan: Plan, cpu: Callable[[], float], *, streaming: bool
    ) -> None:
        self._endpoint, self._requests, self._plan, self._cpu = endpoint, requests, plan, cpu
        self.streaming = streaming
        self._outcome = Outcome()
        self._sent = self._under_way = 0
        self._measuring = self._timer = False
        self._everyone: list[Exchange] = []
        self._idle: list[Exchange] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._arrivals: deque[float] = deque()

    async def run(self) -> Outcome:
        """Open every connection, send one warm-up request on each, then measure. LoadFailed when nothing works."""
        self._loop = asyncio.get_running_loop()
        warm_up = self._endpoint.request(b"", "/v1/models", "GET")
        try:
            async with asyncio.timeout(self._plan.limit_s):
                await self._connect(warm_up)
                await self._measure()
        except TimeoutError:
            seen = f"{self._outcome.completed} answers, {self._outcome.failed} failures"
            raise LoadFailed(f"The load was given up after {self._plan.limit_s:.0f} s: {seen}.") from None
        except OSError as exc:
            raise LoadFailed(f"Port {self._endpoint.port} takes no connection: {exc.strerror}.") from None
        finally:
            self._measuring = False
            for exchange in self._everyone:
                exchange.transport.abort()
            await asyncio.sleep(0)  # lets the transports close before the loop does
        return self._outcome

    async def _connect(self, warm_up: bytes) -> None:
        self._done = self._loop.create_future()
        self._waiting = self._plan.connections
        for _ in range(self._plan.connections):
            _, exchange = await self._loop.create_connection(
                lambda: Exchange(self), self._endpoint.host, self._endpoint.port
            )
            self._everyone.append(exchange)
            exchange.send(warm_up, time.monotonic())
        await self._done

    async def _measure(self) -> None:
        plan, outcome = self._plan, self._outcome
        self._done = self._loop.create_future()
        self._measuring = True
        cpu, own, started = self._cpu(), time.process_time(), time.monotonic()
        self._end = started + plan.seconds
        if plan.rate is not None:
            self._draw_arrivals(started, plan.rate)
            self._idle = list(self._everyone)
            self._serve_due()
        else:
            spread = random.Random(plan.seed)  # streams of real users do not start in one millisecond
            for exchange in self._everyone:
                delay = spread.uniform(0, 0.2) if self.streaming else 0.0
                self._loop.call_later(delay, self._next, exchange)
        await self._done
        outcome.seconds = time.monotonic() - started
        outcome.peer_cpu_s, outcome.own_cpu_s = self._cpu() - cpu, time.process_time() - own

    def _draw_arrivals(self, started: float, rate: float) -> None:
        chance, at = random.Random(self._plan.seed), started
        while (at := at + chance.expovariate(rate)) < self._end:
            self._arrivals.append(at)

    def _arrive(self) -> None:
        self._timer = False
        self._serve_due()

    def _serve_due(self) -> None:
        while self._arrivals and self._idle and self._arrivals[0] <= time.monotonic():
            self._send(self._idle.pop(), self._arrivals.popleft())
        if self._arrivals and self._idle and not self._timer:  # nobody idle: the next answer comes back here
            self._timer = True
            self._loop.call_at(self._arrivals[0], self._arrive)

    def _next(self, exchange: Exchange) -> None:
        """Give a free connection its next request, or let it rest."""
        now = time.monotonic()
        if self._plan.rate is not None:
            self._idle.append(exchange)
            self._serve_due()
            more = bool(self._arrivals)
        else:
            more = self._sent < self._plan.streams if self._plan.streams is not None else now < self._end
            if more:
                self._send(exchange, now)
        if not more and not self._under_way and not self._done.done():
            self._done.set_result(None)

    def _send(self, exchange: Exchange, due: float) -> None:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        self._under_way += 1
        exchange.send(request, due)

    def finished(self, exchange: Exchange, good: bool) -> None:
        """An answer is complete: write it down and go on."""
        now = time.monotonic()
        if not self._measuring:
            self._waiting -= 1
            if not self._waiting and not self._done.done():
                self._done.set_result(None)
            return
        outcome = self._outcome
        self._under_way -= 1
        if good:
            outcome.completed += 1
            outcome.latencies.append(now - exchange.due)
            if self.streaming:
                outcome.tokens += exchange.tokens
                outcome.token_delay += exchange.delays
                outcome.first_token.append(exchange.first - exchange.due)
        else:
            outcome.failed += 1
        if exchange.open and not exchange.transport.is_closing():
            self._next(exchange)

    def lost(self, exchange: Exchange) -> None:
        """A peer closed a connection: open another in its place; a request cut short is a failure."""
        if not self._measuring:
            return
        if exchange.busy:
            exchange.busy = False
            self._under_way -= 1
            self._outcome.failed += 1
        if exchange in self._idle:
            self._idle.remove(exchange)
        self._everyone.remove(exchange)
        task = self._loop.create_task(self._reopen())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _reopen(self) -> None:
        _, exchange = await self._loop.create_connection(
            lambda: Exchange(self), self._endpoint.host, self._endpoint.port
        )
        self._everyone.append(exchange)
        self._next(exchange)


def run_load(
    endpoint: Endpoint,
    requests: tuple[bytes, ...],
    plan: Plan,
    *,
    cpu: Callable[[], float] = lambda: 0.0,
    streaming: bool = False,
) -> Outcome:
    """Run one plan to its end; `cpu` reads the seconds spent so far by the peer. Raises LoadFailed.

    uvloop's timers tick in milliseconds, too coarse for arrivals: a fixed rate runs on asyncio over select(2).
    """
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    if plan.rate is not None:
        loop_factory = lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())  # noqa: E731
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(Load(endpoint, requests, plan, cpu, streaming=streaming).run())
    finally:
        gc.enable()
