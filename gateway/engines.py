"""The engines' part of the constructor: what stands between requests, the registry and the engines there are now.

Opened in order and closed in reverse, by whoever gave the stack. Must not decide anything.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from adapters.db import Database
from adapters.engine import EngineClient
from adapters.http import httpx, open_http
from adapters.proving import Prover
from adapters.reconcile import Reconciler
from adapters.replica import trusting
from gateway.discovery import Discovery, Member, Resolve
from gateway.loading import Loader
from gateway.metrics import Metrics
from gateway.probe import Prober
from gateway.roster import Roster
from gateway.settings import Settings
from gateway.v1.routing import Fleet
from gateway.v1.upstream import Upstream, UpstreamConfig


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines as requests see them, as the registry sees them, what is between the two, and who says which."""

    settings: Settings
    fleet: Fleet
    loader: Loader
    reconciler: Reconciler
    roster: Roster
    discovery: Discovery
    clock: Callable[[], float]

    async def start(
        self,
        loop: asyncio.AbstractEventLoop,
        stack: AsyncExitStack,
        *,
        base_changed: Callable[[], Coroutine[Any, Any, None]],
        queued: Callable[[], bool],
    ) -> None:
        """Find out which there are, and begin to watch them. The arguments are those of `Loader.attach`."""
        loader, reconciler = self.loader, self.reconciler
        prober = Prober(
            self.fleet,
            self.settings.health,
            base=loader.base_of,
            found=reconciler.wake,
            clock=self.clock,
            loop=loop,
            unfinished=loader.unfinished,
        )
        loader.attach(reconciler, base_changed=base_changed, opened=prober.look, queued=queued)

        def turned() -> None:
            self.roster.settle()
            loader.turned()
            self.discovery.wake()

        def changed() -> None:
            loop.call_soon(turned)  # later: whoever says so may be in the middle of a step

        self.fleet.changed = changed
        await self.discovery.first()
        reconciler.start()
        stack.push_async_callback(reconciler.close)
        await stack.enter_async_context(prober)
        self.roster.followers.append(prober.follow)
        await stack.enter_async_context(self.discovery)


async def open_engines(
    settings: Settings,
    resolve: Resolve,
    db: Database,
    metrics: Metrics,
    clock: Callable[[], float],
    loop: asyncio.AbstractEventLoop,
    stack: AsyncExitStack,
) -> Engines:
    """All of it, but none watched yet."""
    trust = ssl.create_default_context() if any(e.url.startswith("https:") for e in settings.engines) else None
    fleet = Fleet((), settings.health)
    http = await stack.enter_async_context(open_http(trust))
    given = settings.adapters
    loader = Loader(fleet, metrics, clock, timeout_s=given.load_timeout_s, max_waiting=given.max_waiting)
    stack.push_async_callback(loader.close)
    reconciler = Reconciler(
        db,
        (),
        clock=clock,
        on_change=loader.on_change,
        traffic=loader,
        prove=Prover(db) if given.proof else trusting,
    )
    roster = Roster(
        fleet,
        reconciler,
        metrics,
        upstream=_upstreams(settings, trust, loop),
        client=_clients(settings, http),
        clock=clock,
        drain_s=settings.fleet.drain_s,
    )
    stack.push_async_callback(roster.aclose)
    discovery = Discovery(
        settings.engines,
        resolve=resolve,
        interval_s=settings.fleet.resolve_s,
        follow=roster.follow,
        hurry=lambda: not fleet.any_ready(),
    )
    return Engines(settings, fleet, loader, reconciler, roster, discovery, clock)


def _upstreams(
    settings: Settings, trust: ssl.SSLContext | None, loop: asyncio.AbstractEventLoop
) -> Callable[[Member], Upstream]:
    given = settings.upstream
    config = UpstreamConfig(
        connect_timeout_s=given.connect_timeout_s,
        first_byte_timeout_s=given.first_byte_timeout_s,
        answer_timeout_s=given.answer_timeout_s,
        idle_timeout_s=given.idle_timeout_s,
        keepalive_s=given.keepalive_s,
        max_connections=given.max_connections,
    )

    def upstream(member: Member) -> Upstream:
        engine = member.engine
        api_key = engine.api_key.get_secret_value() if engine.api_key is not None else None
        return Upstream(
            engine.url, config, loop=loop, clock=time.monotonic, api_key=api_key, ssl=trust, address=member.address
        )

    return upstream


def _clients(settings: Settings, http: httpx.AsyncClient) -> Callable[[Member], EngineClient]:
    def client(member: Member) -> EngineClient:
        engine = member.engine
        return EngineClient(
            member.url,
            engine.api_key.get_secret_value() if engine.api_key is not None else None,
            engine.adapter_dir or settings.adapter_store,
            http,
            slots=engine.max_loras,
            held=engine.max_cpu_loras,
            name=urlsplit(engine.url).netloc if member.address is not None else None,
        )

    return client
