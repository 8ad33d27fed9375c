"""The servers of one gateway process: public and admin port (and /metrics alone where asked), from start to drain.

Owns sockets, signals and the one sweep that watches every deadline. Must not know what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from adapters.errors import InvalidRequest, ServiceError
from gateway import heap, logs
from gateway.app import Gateway, open_gateway
from gateway.discovery import Resolve, getaddrinfo
from gateway.errors import ShuttingDown
from gateway.pausing import LocalEngine
from gateway.protocol import Connection
from gateway.settings import Settings

log = logging.getLogger("loragate.server")

SWEEP_S = 0.25
SWITCH_S = 0.0001  # a database thread gives way after 0.1 ms, not Python's 5: that is what streams would wait
LAST_WORDS_S = 1.0  # for error events to reach their callers after the drain's deadline


@dataclass(frozen=True, slots=True)
class Started:
    """What is running, and the ports it was given (a setting of 0 lets the system choose)."""

    gateway: Gateway
    public_port: int
    admin_port: int
    connections: Callable[[], list[Any]]  # callers' connections on the public port, now


OnStarted = Callable[[Started], Awaitable[None]]


class ListenError(ServiceError):
    code = "cannot_listen"


class Server(uvicorn.Server):
    """uvicorn's server without its signal handling, which would re-raise the signal (exit 143, not 0).

    It is told to end by `leave`, and wakes once a second for its date header, not ten times to look for that.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._left = asyncio.Event()

    def leave(self) -> None:
        """Close the listener and what is idle, let the rest finish."""
        self.should_exit = True
        self._left.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _log_started_message(self, listeners: Any) -> None:
        pass  # we bind the sockets and say so ourselves


def run(settings: Settings) -> int:
    """`loragate serve`: until a signal; the process's exit code."""
    logs.start(settings.log.level)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve_and_settle(settings))
    return 0


async def serve_and_settle(settings: Settings, *, on_started: OnStarted | None = None, **more: Any) -> None:
    """`serve`, for a process that is there for nothing else: what exists once it listens is never collected."""

    async def settled(started: Started) -> None:
        heap.settle()
        if on_started is not None:
            await on_started(started)

    await serve(settings, on_started=settled, **more)


async def serve(
    settings: Settings,
    *,
    local_engine: LocalEngine | None = None,
    resolve: Resolve = getaddrinfo,
    on_started: OnStarted | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT (or `stop`), then drain; a second signal ends the drain. ListenError, ServiceError.

    local_engine: what supervises the engine of this machine: says how it is, and stops it for a training run.
    resolve: how the names of engines are looked up.
    on_started: awaited once both ports accept.
    """
    _check_admin_host(settings)
    sys.setswitchinterval(SWITCH_S)
    stop = stop or asyncio.Event()
    hurry = asyncio.Event()
    with _listeners(settings) as sockets, _signals(stop, hurry):
        async with open_gateway(settings, local_engine=local_engine, resolve=resolve) as gateway:
            servers = _servers(gateway, sockets)
            running = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in servers]
            sweep = asyncio.create_task(_sweep(gateway, servers[0][0]))
            try:
                await _until(lambda: all(server.started for server, _ in servers), running)
                public_port, admin_port = (sock.getsockname()[1] for sock in sockets[:2])
                log.info("listening on %s:%d, admin on port %d", settings.public.host, public_port, admin_port)
                with _address_files(settings, public_port, admin_port):
                    if on_started is not None:
                        await on_started(Started(gateway, public_port, admin_port, lambda: _connections(servers[0][0])))
                    await _first(stop.wait(), *running)
                    await _drain(gateway, servers[0][0], running[0], hurry)
            finally:
                for server, _ in servers:
                    server.force_exit = True
                    server.leave()
                    for connection in list(server.server_state.connections):
                        connection.shutdown()
                        if connection.transport is not None:
                            connection.transport.abort()
                await asyncio.gather(*running, return_exceptions=True)
                sweep.cancel()
                await asyncio.gather(sweep, return_exceptions=True)


def _servers(gateway: Gateway, sockets: list[socket.socket]) -> list[tuple[Server, socket.socket]]:
    # Half of the file descriptors for callers: the other half must do for engines, the database and the admin port.
    bounds = gateway.settings.receive
    bounds = bounds.model_copy(update={"max_connections": min(bounds.max_connections, _file_limit() // 2)})
    public = functools.partial(Connection, plane=gateway.routes, bounds=bounds)
    apps = [(gateway.public_app, public), (gateway.admin_app, "httptools"), (gateway.metrics_app, "httptools")]
    servers = []
    for (app, protocol), sock in zip(apps, sockets, strict=False):
        config = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]  # uvicorn calls it, a partial is as good as a class
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=2048,
        )
        servers.append((Server(config), sock))
    return servers


def _connections(public: Server) -> list[Any]:
    return list(public.server_state.connections)


async def _sweep(gateway: Gateway, public: Server) -> None:
    """Every deadline of every connection, caller's and engine's, looked at four times a second."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now = time.monotonic()
        for connection in _connections(public):
            if isinstance(connection, Connection):
                connection.sweep(now)
        fleet = gateway.proxy.fleet
        for replica in (*fleet.replicas, *fleet.leaving):
            replica.upstream.sweep(now)
        gateway.proxy.admission.sweep(now)


async def _drain(gateway: Gateway, public: Server, running: asyncio.Task[None], hurry: asyncio.Event) -> None:
    """Readiness off, wait, accept no more, let answers end, tell those that did not, close."""
    drain = gateway.settings.drain
    log.info("stopping: %d requests in flight", gateway.proxy.admission.in_flight)
    gateway.health.draining = True
    await _first(hurry.wait(), asyncio.sleep(drain.delay_s))
    public.leave()
    await _first(hurry.wait(), asyncio.sleep(drain.timeout_s), running)
    gateway.proxy.draining = True
    for connection in _connections(public):
        if isinstance(connection, Connection) and connection.handler is not None:
            connection.handler.terminate(
                ShuttingDown("This gateway is shutting down; the answer is not complete.", retry_after_s=1)
            )
    await _first(asyncio.sleep(LAST_WORDS_S), running)


async def _first(*waits: Awaitable[Any]) -> None:
    """Return when the first of them is over; the others are left alone if tasks, cancelled if made here."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, wait in zip(tasks, waits, strict=True):
            if task is not wait:
                task.cancel()


async def _until(condition: Callable[[], bool], running: list[asyncio.Task[None]]) -> None:
    while not condition():
        for task in running:
            if task.done():
                task.result()
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def _signals(stop: asyncio.Event, hurry: asyncio.Event) -> Iterator[None]:
    """First SIGTERM or SIGINT: stop; the second: hurry."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    wanted = (signal.SIGTERM, signal.SIGINT)
    try:
        for number in wanted:
            loop.add_signal_handler(number, on_signal)
    except (ValueError, RuntimeError):  # not the main thread: whoever runs us stops us
        yield
        return
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _listeners(settings: Settings) -> Iterator[list[socket.socket]]:
    places = [
        (settings.public.host, settings.public.port, "--port"),
        (settings.admin.host, settings.admin.port, "--admin-port"),
    ]
    if settings.metrics.port is not None:
        places.append((settings.metrics.host, settings.metrics.port, "--metrics-port"))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(listen(*place))) for place in places]


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A bound, listening socket; ListenError says what to change."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ListenError(
                f"Port {port} on {host} is taken by another program. Stop that one, or choose another port with {flag}."
            ) from None
        reason = exc.strerror or str(exc)
        raise ListenError(f"Cannot listen on {host} port {port}: {reason}. Choose another place with {flag}.") from None
    sock.setblocking(False)
    # Accepted sockets inherit it. uvloop sets it by itself; asyncio does not on sockets made without a protocol
    # number, and then every answer in two writes waits 40 ms for a delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.contextmanager
def _address_files(settings: Settings, public_port: int, admin_port: int) -> Iterator[None]:
    """`<data>/admin.url` and `public.url`, while the ports listen: how the CLI and the worker find them."""
    written = []
    for name, host, port in (("admin", settings.admin.host, admin_port), ("public", settings.public.host, public_port)):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # where to call, not where to listen
        path = settings.data_dir / f"{name}.url"
        path.write_text(f"http://{f'[{host}]' if ':' in host else host}:{port}\n", encoding="ascii")
        written.append(path)
    try:
        yield
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def _file_limit() -> int:
    """How many files this process may open, raised to what the system allows."""
    try:
        import resource
    except ImportError:  # Windows
        return 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS names a hard limit that it does not allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft > 0 else 2**20


def _check_admin_host(settings: Settings) -> None:
    host = settings.admin.host
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not settings.admin.allow_remote:
        raise InvalidRequest(
            f"The admin port would be reachable from other machines on {host}. "
            "Bind it to 127.0.0.1, or say --admin-allow-remote if a firewall or network policy guards it."
        )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, where there is one; None means asyncio's own."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop
