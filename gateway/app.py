"""The one constructor: every object of a gateway, opened in order and closed in reverse.

Reading `open_gateway` is reading what exists. Nothing is built at import. Must not decide anything.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from adapters.arrivals import Arrivals
from adapters.db import Database
from adapters.engine import EngineClient
from adapters.http import open_http
from adapters.proving import Prover
from adapters.reconcile import Reconciler
from adapters.replica import trusting
from adapters.service import AdapterService
from adapters.shelf import Shelf
from adapters.traffic import Traffic
from gateway import budgets
from gateway.admin.app import AdminServices, create_admin, create_metrics
from gateway.canary import Canaries
from gateway.capacity import Capacity
from gateway.demand import Demand
from gateway.health import Health
from gateway.keys import KeyService
from gateway.loading import Loader
from gateway.metrics import Metrics
from gateway.openai.models import Failing, ModelRoutes
from gateway.probe import Prober
from gateway.public import create_public
from gateway.refresh import Refresher
from gateway.settings import Settings
from gateway.status import Status
from gateway.usage import UsageRecorder, UsageService
from gateway.v1.admission import Admission
from gateway.v1.auth import Authenticator
from gateway.v1.limits import Ledger
from gateway.v1.proxy import Proxy
from gateway.v1.routes import Routes
from gateway.v1.routing import Fleet, Replica
from gateway.v1.snapshot import Snapshot
from gateway.v1.upstream import Upstream, UpstreamConfig

EngineStates = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the servers serve, and what a test may look at."""

    settings: Settings
    proxy: Proxy
    routes: Routes
    health: Health
    keys: KeyService
    adapters: AdapterService
    demand: Demand
    metrics: Metrics
    public_app: FastAPI
    admin_app: FastAPI
    metrics_app: FastAPI


@asynccontextmanager
async def open_gateway(settings: Settings, *, engine_states: EngineStates | None = None) -> AsyncIterator[Gateway]:
    """Everything one gateway consists of, running. ServiceError says why it cannot start."""
    loop = asyncio.get_running_loop()
    # uvloop's own time() stands still during one turn of the loop: too coarse for the gateway's own overhead.
    clock, wall = time.monotonic, time.time
    async with AsyncExitStack() as stack:
        db = await _open_database(settings, stack)
        metrics = Metrics()
        recorder = UsageRecorder(db, clock=wall, flush_s=settings.usage.flush_s, max_pending=settings.usage.max_pending)
        await stack.enter_async_context(recorder)

        fleet, loader, reconciler = await _open_engines(settings, db, metrics, clock, loop, stack)
        refresh = _Later()
        keys = await KeyService.open(db, settings.data_dir, clock=wall, random_bytes=os.urandom, changed=refresh.now)
        proxy = Proxy(
            settings,
            fleet,
            Ledger(),
            _open_admission(settings, loop),
            metrics,
            recorder.record,
            loader.ensure,
            Authenticator(keys.pepper),
            clock,
            wall,
            _request_ids(),
        )

        adapters = _open_adapters(settings, db, reconciler, refresh.now, loader, stack)
        canaries = Canaries(adapters, metrics, clock)
        proxy.observe = canaries.observe

        def swap(snapshot: Snapshot) -> None:
            proxy.snapshot = snapshot
            canaries.follow(snapshot)

        refresher = Refresher(db, settings, swap=swap, base=loader.base_id, wall=wall)
        await adapters.recover()
        await stack.enter_async_context(refresher)
        refresh.bind(refresher.refresh)
        await stack.enter_async_context(canaries)
        await budgets.restore(proxy, db, recorder)

        prober = Prober(fleet, settings.health, base=loader.base_of, found=reconciler.wake, clock=clock, loop=loop)
        loader.attach(
            reconciler,
            base_changed=refresher.refresh,
            opened=prober.look,
            queued=proxy.admission.has_queue,
        )
        reconciler.start()
        stack.push_async_callback(reconciler.close)
        await stack.enter_async_context(prober)

        states = engine_states or list
        health = Health(proxy, lambda: refresher.trouble, states)
        demand = await stack.enter_async_context(Demand(fleet, loader, reconciler, metrics, clock))
        capacity = Capacity(demand, reconciler, settings.adapters.max_lora_rank)
        status = Status(settings, proxy, health, adapters, recorder, wall, states, capacity)
        metrics.capacity = capacity.gauges
        _connect_gauges(metrics, proxy, status, reconciler)
        usage = UsageService(db, recorder)
        arrivals = Arrivals(settings.adapter_store, clock=wall)
        stack.push_async_callback(arrivals.close)
        models = ModelRoutes(proxy, adapters, Failing(lambda: reconciler.residency))
        yield _behind_doors(
            settings, proxy, health, status, keys, adapters, arrivals, canaries, usage, demand, models, wall
        )


def _behind_doors(
    settings: Settings,
    proxy: Proxy,
    health: Health,
    status: Status,
    keys: KeyService,
    adapters: AdapterService,
    arrivals: Arrivals,
    canaries: Canaries,
    usage: UsageService,
    demand: Demand,
    models: ModelRoutes,
    wall: Callable[[], float],
) -> Gateway:
    services = AdminServices(
        keys=keys,
        adapters=adapters,
        arrivals=arrivals,
        canary_figures=canaries.figures,
        usage=usage,
        live_keys=lambda: proxy.snapshot.keys,
        status=status.document,
        ready=health.ready,
        metrics=proxy.metrics.render,
        clock=wall,
        new_id=lambda: proxy.new_request_id().decode(),
    )
    return Gateway(
        settings=settings,
        proxy=proxy,
        routes=Routes(proxy),
        health=health,
        keys=keys,
        adapters=adapters,
        demand=demand,
        metrics=proxy.metrics,
        public_app=create_public(proxy, health, models),
        admin_app=create_admin(services),
        metrics_app=create_metrics(proxy.metrics.render, services.new_id),
    )


async def _open_database(settings: Settings, stack: AsyncExitStack) -> Database:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database.open(settings.database)
    stack.callback(db.close)
    db.migrate()
    return db


async def _open_engines(
    settings: Settings,
    db: Database,
    metrics: Metrics,
    clock: Callable[[], float],
    loop: asyncio.AbstractEventLoop,
    stack: AsyncExitStack,
) -> tuple[Fleet, Loader, Reconciler]:
    """The engines as requests see them, as the registry sees them, and what is between the two."""
    trust = ssl.create_default_context() if any(e.url.startswith("https:") for e in settings.engines) else None
    fleet = _open_fleet(settings, trust, loop, stack)
    http = await stack.enter_async_context(open_http(trust))
    given = settings.adapters
    loader = Loader(fleet, metrics, clock, timeout_s=given.load_timeout_s, max_waiting=given.max_waiting)
    stack.push_async_callback(loader.close)
    reconciler = Reconciler(
        db,
        _engine_clients(settings, http),
        clock=clock,
        on_change=loader.on_change,
        traffic=loader,
        prove=Prover(db) if given.proof else trusting,
    )
    return fleet, loader, reconciler


def _open_fleet(
    settings: Settings, trust: ssl.SSLContext | None, loop: asyncio.AbstractEventLoop, stack: AsyncExitStack
) -> Fleet:
    given = settings.upstream
    config = UpstreamConfig(
        connect_timeout_s=given.connect_timeout_s,
        first_byte_timeout_s=given.first_byte_timeout_s,
        answer_timeout_s=given.answer_timeout_s,
        idle_timeout_s=given.idle_timeout_s,
        keepalive_s=given.keepalive_s,
        max_connections=given.max_connections,
    )
    replicas = []
    for engine in settings.engines:
        api_key = engine.api_key.get_secret_value() if engine.api_key is not None else None
        upstream = Upstream(engine.url, config, loop=loop, clock=time.monotonic, api_key=api_key, ssl=trust)
        stack.push_async_callback(upstream.aclose)
        replicas.append(Replica(engine.url, upstream))
    return Fleet(replicas, settings.health)


def _open_adapters(
    settings: Settings,
    db: Database,
    reconciler: Reconciler,
    changed: Callable[[], Awaitable[None]],
    traffic: Traffic,
    stack: AsyncExitStack,
) -> AdapterService:
    adapters = AdapterService(
        db,
        Shelf(settings.adapter_store),
        reconciler,
        clock=time.time,
        max_lora_rank=settings.adapters.max_lora_rank,
        changed=changed,
        traffic=traffic,
    )
    stack.push_async_callback(adapters.close)
    return adapters


def _open_admission(settings: Settings, loop: asyncio.AbstractEventLoop) -> Admission:
    given = settings.admission
    return Admission(given.max_in_flight, given.max_queue, given.queue_timeout_s, loop)


def _engine_clients(settings: Settings, http: Any) -> list[EngineClient]:
    return [
        EngineClient(
            engine.url,
            engine.api_key.get_secret_value() if engine.api_key is not None else None,
            engine.adapter_dir or settings.adapter_store,
            http,
            slots=engine.max_loras,
            held=engine.max_cpu_loras,
        )
        for engine in settings.engines
    ]


def _connect_gauges(metrics: Metrics, proxy: Proxy, status: Status, reconciler: Reconciler) -> None:
    metrics.evictions = lambda: [(url, view.evictions) for url, view in reconciler.residency.items()]
    metrics.in_flight = lambda: proxy.admission.in_flight
    metrics.replica_up = lambda: [(r.url, r.state.value == "ready") for r in proxy.fleet.replicas]
    metrics.adapters = status.adapter_counts


def _request_ids() -> Callable[[], bytes]:
    """Unique across processes (80 random bits) and in one (a counter), 0.2 µs each."""
    prefix = b"req-" + os.urandom(10).hex().encode()
    counter = itertools.count(1)
    return lambda: b"%b%012x" % (prefix, next(counter))


class _Later:
    """A callback that can be handed out before what it calls exists."""

    def __init__(self) -> None:
        self._call: Callable[[], Awaitable[None]] | None = None

    def bind(self, call: Callable[[], Awaitable[None]]) -> None:
        self._call = call

    async def now(self) -> None:
        if self._call is not None:
            await self._call()
