"""The one constructor: every object of a gateway, opened in order and closed in reverse.

Reading `open_gateway` is reading what exists. Nothing is built at import. Must not decide anything.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from adapters.db import Database
from adapters.gateways import Gateways, Heartbeat
from adapters.reconcile import Reconciler
from adapters.service import AdapterService
from adapters.shelf import Shelf
from adapters.sources.arrivals import Arrivals
from adapters.traffic import Traffic
from gateway import budgets
from gateway.admin.app import AdminServices, create_admin, create_metrics
from gateway.canary import Canaries
from gateway.capacity import Capacity
from gateway.demand import Demand
from gateway.discovery import Resolve, getaddrinfo
from gateway.engines import open_engines
from gateway.following import Following
from gateway.health import Health
from gateway.keys import KeyService
from gateway.loading import Loader
from gateway.metrics import GONE, Metrics
from gateway.openai.callers import Callers
from gateway.openai.checked import UploadChecks
from gateway.openai.feedback import FeedbackRoutes
from gateway.openai.files import STREAMED, FileRoutes
from gateway.openai.fine_tuning import FineTuningRoutes
from gateway.openai.models import Failing, ModelRoutes
from gateway.pausing import LocalEngine, Pauses
from gateway.public import create_public
from gateway.refresh import Refresher
from gateway.settings import Settings
from gateway.status import Status
from gateway.trainings import Trainings
from gateway.upkeep import Upkeep
from gateway.usage import UsageRecorder, UsageService
from gateway.v1.admission import Admission
from gateway.v1.auth import Authenticator
from gateway.v1.limits import Ledger
from gateway.v1.proxy import Proxy
from gateway.v1.routes import Routes
from gateway.v1.snapshot import Snapshot
from training.feedback import DAY_S, FeedbackService
from training.files import Files
from training.places import Places
from training.previews import Previews
from training.run import process
from training.service import JobService


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
    jobs: JobService
    files: Files
    previews: Previews
    public_app: FastAPI
    admin_app: FastAPI
    metrics_app: FastAPI


@dataclass(frozen=True, slots=True)
class _Training:
    """The training room's part, as its doors use it."""

    jobs: JobService
    files: Files
    places: Places
    feedback: FeedbackService
    previews: Previews
    pauses: Pauses


@asynccontextmanager
async def open_gateway(
    settings: Settings, *, local_engine: LocalEngine | None = None, resolve: Resolve = getaddrinfo
) -> AsyncIterator[Gateway]:
    """Everything one gateway consists of, running. ServiceError says why it cannot start."""
    loop = asyncio.get_running_loop()
    # uvloop's own time() stands still during one turn of the loop: too coarse for the gateway's own overhead.
    clock, wall = time.monotonic, time.time
    async with AsyncExitStack() as stack:
        db = await _open_database(settings, stack)
        metrics = Metrics()
        recorder = UsageRecorder(db, clock=wall, flush_s=settings.usage.flush_s, max_pending=settings.usage.max_pending)
        await stack.enter_async_context(recorder)

        engines = await open_engines(settings, resolve, db, metrics, clock, loop, stack)
        fleet, loader, reconciler = engines.fleet, engines.loader, engines.reconciler
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

        def swap(snapshot: Snapshot) -> None:
            proxy.snapshot = snapshot
            canaries.follow(snapshot)
            metrics.drop_models(snapshot.without)
            if heartbeat is not None:
                heartbeat.changed()
                reconciler.wake()  # another gateway may have moved what engines should have

        def fresh(until: float) -> None:
            if db.shared:  # else nobody but this process changes anything
                proxy.fresh_until = until

        refresher = Refresher(db, settings, swap=swap, base=loader.base_id, wall=wall, clock=clock, fresh=fresh)
        proxy.catch_up = refresher.catch_up
        heartbeat = await _open_heartbeat(db, loader, reconciler, lambda: refresher.revision, stack)
        adapters = _open_adapters(settings, db, reconciler, refresh.now, loader, heartbeat, stack)
        canaries = Canaries(adapters, metrics, clock)
        proxy.observe = canaries.observe
        await adapters.recover()
        await stack.enter_async_context(refresher)
        refresh.bind(refresher.refresh)
        await stack.enter_async_context(canaries)
        await budgets.restore(proxy, db, recorder)

        await engines.start(loop, stack, base_changed=refresher.refresh, queued=proxy.admission.has_queue)
        states = local_engine.states if local_engine is not None else list
        health = Health(proxy, lambda: refresher.trouble, states, engines.discovery.reasons)
        demand = await stack.enter_async_context(Demand(fleet, loader, reconciler, metrics, clock))
        capacity = Capacity(demand, reconciler, settings.adapters.max_lora_rank)
        status = Status(settings, proxy, health, adapters, recorder, wall, states, capacity, engines)
        metrics.capacity = capacity.gauges
        _connect_gauges(metrics, proxy, status, reconciler)
        usage = UsageService(db, recorder)
        arrivals = Arrivals(settings.adapter_store, clock=wall)
        stack.push_async_callback(arrivals.close)
        models = ModelRoutes(proxy, adapters, Failing(lambda: reconciler.residency))
        pauses = _open_pauses(local_engine, proxy, clock, Places(settings.data_dir))
        training = await _open_training(settings, db, metrics, adapters, pauses, stack)
        yield _behind_doors(
            settings, proxy, health, status, keys, adapters, arrivals, canaries, usage, demand, models, training, wall
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
    training: _Training,
    wall: Callable[[], float],
) -> Gateway:
    following = Following(training.jobs, lambda: health.draining)
    callers = Callers(proxy)
    files = FileRoutes(callers, training.files, UploadChecks(), idle_timeout_s=settings.receive.body_timeout_s)
    fine_tuning = FineTuningRoutes(
        callers,
        training.jobs,
        training.files,
        following,
        settings.training,
        snapshot=lambda: proxy.snapshot,
        random_bytes=os.urandom,
    )
    services = AdminServices(
        keys=keys,
        adapters=adapters,
        arrivals=arrivals,
        canary_figures=canaries.figures,
        usage=usage,
        jobs=training.jobs,
        following=following,
        places=training.places,
        previews=training.previews,
        pauses=training.pauses,
        feedback=training.feedback,
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
        routes=Routes(proxy, STREAMED),
        health=health,
        keys=keys,
        adapters=adapters,
        demand=demand,
        metrics=proxy.metrics,
        jobs=training.jobs,
        files=training.files,
        previews=training.previews,
        public_app=create_public(
            proxy, health, models, files, fine_tuning, FeedbackRoutes(proxy, training.feedback, settings.feedback)
        ),
        admin_app=create_admin(services),
        metrics_app=create_metrics(proxy.metrics.render, services.new_id),
    )


async def _open_database(settings: Settings, stack: AsyncExitStack) -> Database:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database.open(settings.database)
    stack.callback(db.close)
    db.migrate()
    return db


def _open_feedback(settings: Settings, db: Database, wall: Callable[[], float]) -> FeedbackService:
    given = settings.feedback
    return FeedbackService(db, clock=wall, keep_s=given.keep_days * DAY_S or None, most=given.max_per_key)


async def _open_heartbeat(
    db: Database, loader: Loader, reconciler: Reconciler, revision: Callable[[], int], stack: AsyncExitStack
) -> Heartbeat | None:
    """Before the first look at the registry: whoever removes something from then on knows of this gateway."""
    if not db.shared:
        return None
    heartbeat = await stack.enter_async_context(Heartbeat(db, loader, os.urandom(8).hex(), revision))
    loader.used_elsewhere = lambda: heartbeat.used_elsewhere
    reconciler.gateways = heartbeat
    return heartbeat


async def _open_training(
    settings: Settings, db: Database, metrics: Metrics, adapters: AdapterService, pauses: Pauses, stack: AsyncExitStack
) -> _Training:
    places, given = Places(settings.data_dir), settings.training
    jobs = JobService(db, clock=time.time, random_bytes=os.urandom, jobs_max=given.key_jobs_max)
    files = Files(db, places.files, clock=time.time, random_bytes=os.urandom, owner_bytes_max=given.key_bytes_max)
    previews = Previews(db, adapters, places, clock=time.time)
    await stack.enter_async_context(Upkeep(files, previews))
    await stack.enter_async_context(Trainings(jobs, metrics))
    feedback = await stack.enter_async_context(_open_feedback(settings, db, time.time))
    await stack.enter_async_context(pauses)
    return _Training(jobs, files, places, feedback, previews, pauses)


def _open_adapters(
    settings: Settings,
    db: Database,
    reconciler: Reconciler,
    changed: Callable[[], Awaitable[None]],
    traffic: Traffic,
    gateways: Gateways | None,
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
        gateways=gateways,
    )
    stack.push_async_callback(adapters.close)
    return adapters


def _open_pauses(engine: LocalEngine | None, proxy: Proxy, clock: Callable[[], float], places: Places) -> Pauses:
    def refuse(why: str) -> None:
        proxy.paused = why

    return Pauses(
        engine,
        clock,
        refuse=refuse,
        in_flight=lambda: proxy.admission.in_flight,
        before=lambda: process.alone(places.jobs),
    )


def _open_admission(settings: Settings, loop: asyncio.AbstractEventLoop) -> Admission:
    given = settings.admission
    return Admission(given.max_in_flight, given.max_queue, given.queue_timeout_s, loop)


def _connect_gauges(metrics: Metrics, proxy: Proxy, status: Status, reconciler: Reconciler) -> None:
    metrics.evictions = lambda: [
        *((url, view.evictions) for url, view in reconciler.residency.items()),
        *([(GONE, reconciler.evictions_gone)] if reconciler.evictions_gone else []),
    ]
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
