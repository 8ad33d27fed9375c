"""What the tests of the upstream client share: a recording sink, a clock set by hand, and both event loops."""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from gateway.v1.upstream import Call, Fault, Upstream, UpstreamConfig

PATH = "/v1/chat/completions"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Turn an async test into a plain one that runs once on asyncio's loop and once on uvloop."""

    def run(loop_name: str, **arguments: object) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(_bounded(test(**arguments)))

    old = inspect.signature(test).parameters.values()
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # pytest reads the fixtures from it
        [inspect.Parameter("loop_name", inspect.Parameter.POSITIONAL_OR_KEYWORD), *old]
    )
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.pytestmark = [*getattr(test, "pytestmark", [])]  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop_name", sorted(LOOPS))(run)


async def _bounded(test: Awaitable[None]) -> None:
    await asyncio.wait_for(test, 30)


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RecordingSink:
    """Keeps everything that it is told, and an event for each stage."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.faults: list[tuple[Fault, str]] = []
        self.ends = 0
        self.headed = asyncio.Event()
        self.fed = asyncio.Event()
        self.over = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def fault(self) -> Fault | None:
        return self.faults[0][0] if self.faults else None

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert self.status is None
        assert not self.over.is_set()
        self.status, self.headers = status, headers
        self.headed.set()

    def on_body(self, data: bytes) -> None:
        assert self.status is not None
        assert not self.over.is_set()
        self.pieces.append(data)
        self.fed.set()

    def on_end(self) -> None:
        assert not self.over.is_set()
        self.ends += 1
        self.over.set()

    def on_fault(self, fault: Fault, detail: str) -> None:
        assert not self.over.is_set()
        self.faults.append((fault, detail))
        self.over.set()


class LoggedErrors(logging.Handler):
    """Collects what the client logs: a sink that raises, a failing assertion of RecordingSink included."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@asynccontextmanager
async def client(
    url: str,
    config: UpstreamConfig | None = None,
    *,
    clock: Clock | None = None,
    api_key: str | None = None,
    tls: ssl.SSLContext | None = None,
    logged: int = 0,
) -> AsyncIterator[Upstream]:
    """An upstream that is closed at the end, with nothing open, nothing in flight and `logged` errors logged."""
    errors = LoggedErrors()
    logger = logging.getLogger("loragate.upstream")
    logger.addHandler(errors)
    loop = asyncio.get_running_loop()
    upstream = Upstream(url, config or UpstreamConfig(), loop=loop, clock=clock, api_key=api_key, ssl=tls)
    try:
        yield upstream
    finally:
        await upstream.aclose()
        logger.removeHandler(errors)
    assert upstream.in_flight == 0
    assert upstream.open_connections == 0
    assert len(errors.messages) == logged, errors.messages


def send(upstream: Upstream, body: bytes = b"{}") -> tuple[RecordingSink, Call]:
    sink = RecordingSink()
    return sink, upstream.post(PATH, body, sink, "rid-1")


async def ask(upstream: Upstream, body: bytes = b"{}") -> RecordingSink:
    """One request, to its end."""
    sink, _ = send(upstream, body)
    await sink.over.wait()
    return sink


async def settled(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test's own deadline is the limit."""
    while not condition():  # counters of both ends: neither has an event to wait for
        await asyncio.sleep(0.001)
