"""The real admin app on a real uvicorn and a real SQLite file, in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from adapters.db import Database
from adapters.reconcile import Reconciler
from adapters.service import AdapterService
from adapters.shelf import Shelf
from adapters.sources.arrivals import Arrivals
from gateway import store
from gateway.admin.app import AdminServices, create_admin
from gateway.canary import Trial
from gateway.following import Following
from gateway.keys import Grant, Issued, Key, KeyService
from gateway.pausing import Pauses
from gateway.usage import UsageRecorder, UsageService
from tests import databases
from training.feedback import FeedbackService
from training.places import Places
from training.previews import Previews
from training.service import JobService


@dataclass
class AdminRoom:
    """Everything behind one admin port, and a client that carries the root key."""

    home: Path
    db: Database
    keys: KeyService
    recorder: UsageRecorder
    app: FastAPI
    following: Following
    url: str = ""
    root: str = field(default="", repr=False)
    root_client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=30, verify=False))

    async def issue(self, *scopes: str, models: frozenset[str] | None = None) -> Issued:
        grant = Grant("test", frozenset(scopes or ("inference",)), models)
        return await self.keys.create(grant, self.keys.root)

    def client(self, token: str | None) -> httpx.AsyncClient:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=30, verify=False
        )  # no TLS: skip its 20 ms of set-up


@contextlib.asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """`app` on a free port; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def admin_room(home: Path) -> AsyncIterator[AdminRoom]:
    """Open everything in `home`, serve it, close it in reverse."""
    live: dict[str, Key] = {}
    async with contextlib.AsyncExitStack() as stack:
        db = Database.open(databases.sqlite(home / "loragate.db"))
        stack.callback(db.close)

        async def refresh() -> None:
            now = await db.read(lambda conn: {key.id: key for key in store.live_keys(conn, time.time())})
            live.clear()
            live.update(now)

        keys = await KeyService.open(db, home, clock=time.time, random_bytes=os.urandom, changed=refresh)
        recorder = UsageRecorder(db, clock=time.time, flush_s=3600, max_pending=1000)
        await stack.enter_async_context(recorder)
        arrivals = Arrivals(home / "adapters", clock=time.time, environ={}, first_pause_s=0.001)
        stack.push_async_callback(arrivals.close)
        jobs = JobService(db, clock=time.time, random_bytes=os.urandom)
        following = Following(jobs, lambda: False, poll_s=0.02, heartbeat_s=0.05)
        app = create_admin(services(db, home, keys, recorder, live, arrivals, jobs, following))
        room = AdminRoom(home, db, keys, recorder, app, following, root=(home / "admin.key").read_text().strip())
        await room.root_client.aclose()
        room.url = await stack.enter_async_context(serving(app))
        room.root_client = await stack.enter_async_context(room.client(room.root))
        yield room


def services(
    db: Database,
    home: Path,
    keys: KeyService,
    recorder: UsageRecorder,
    live: Mapping[str, Key],
    arrivals: Arrivals,
    jobs: JobService,
    following: Following,
) -> AdminServices:
    adapters = adapter_service(db, home)
    return AdminServices(
        keys=keys,
        adapters=adapters,
        arrivals=arrivals,
        canary_figures=lambda name, canary: Trial(canary.version, 0.0).figures(canary.rules),
        usage=UsageService(db, recorder),
        feedback=FeedbackService(db, clock=time.time, keep_s=None, most=1000),
        jobs=jobs,
        following=following,
        places=Places(home),
        previews=Previews(db, adapters, Places(home), clock=time.time),
        pauses=Pauses(None, time.monotonic, refuse=lambda why: None, in_flight=lambda: 0),
        live_keys=lambda: live,
        status=status,
        ready=ready,
        metrics=lambda: b"# HELP up x\n",
        clock=time.time,
        new_id=lambda: uuid.uuid4().hex,
    )


def adapter_service(db: Database, home: Path) -> AdapterService:
    """The real one, with no engine running: registered versions wait."""
    reconciler = Reconciler(db, [], clock=time.time)
    return AdapterService(db, Shelf(home / "adapters"), reconciler, clock=time.time)


def status() -> dict[str, Any]:
    return {"version": "1", "engines": [{"url": "http://e", "state": "ready", "since_at": 1_800_000_000}]}


def ready() -> tuple[bool, dict[str, Any]]:
    return False, {"ready": False, "reasons": ["no engine"], "replicas": []}
