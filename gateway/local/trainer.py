"""What the worker of this machine trains with: its data directory, its gateway, and the managed training environment.

Puts training/pipeline.py together with what lies in this room. Must not know what a job is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.db import Database
from gateway.local.display import Display
from gateway.local.environments import Environments
from gateway.local.hardware import GIB, Hardware, look
from gateway.local.pins import kinds
from gateway.local.places import Places as LocalPlaces
from training.concluding import ADAPTER
from training.digests import Digests
from training.errors import GatewayAway
from training.facts import Gpu, Machine
from training.files import Files
from training.gatewayclient import Address
from training.interpreter import Interpreter, beside_an_engine
from training.lineage import manifest, write
from training.pipeline import Pipeline, Surroundings
from training.places import Places
from training.plan import Settled
from training.publishing import Publisher
from training.types import Job


def open_steps(data: Path, db: Database, admin_url: str) -> Pipeline:
    """The steps of real training below `data`. admin_url: the gateway's, where it has not written down its own."""
    places = Places(data)
    display = Display(sys.stderr, clock=time.monotonic)
    environments = Environments(LocalPlaces(data), look(os.environ), os.environ, display, time.monotonic)
    kind = kinds()["training"]
    making = asyncio.Lock()

    async def environment() -> Path:
        async with making:
            return await environments.ensure(kind)

    return Pipeline(
        Surroundings(
            places=places,
            address=lambda: address(data, admin_url, os.environ),
            environment=environment,
            existing=lambda: environments.existing(kind),
            machine=lambda: machine(look(os.environ), shutil.disk_usage(data).free),
            lineage=lambda job, folder, settled: made(job, folder, settled, environments.existing(kind), places),
            after_training=Publisher(db, Files(db, places.files, clock=time.time, random_bytes=os.urandom)),
        )
    )


def address(data: Path, admin_url: str, environ: Mapping[str, str]) -> Address:
    """Where the gateway of this data directory listens now, and its key; GatewayAway where it has not said.

    LORAGATE_URL, LORAGATE_ADMIN_URL and LORAGATE_ADMIN_KEY name one elsewhere.
    """
    public = environ.get("LORAGATE_URL") or _line(data / "public.url")
    key = environ.get("LORAGATE_ADMIN_KEY") or _line(data / "admin.key")
    if public is None or key is None:
        raise GatewayAway(
            f"No gateway serves with the data directory {data} now. Start it there, or name one with LORAGATE_URL, "
            "LORAGATE_ADMIN_URL and LORAGATE_ADMIN_KEY.",
            retry_after_s=10,
        )
    return Address(public, environ.get("LORAGATE_ADMIN_URL") or _line(data / "admin.url") or admin_url, key)


def machine(hardware: Hardware, free_bytes: int | None = None) -> Machine:
    """This machine as a plan sees it."""
    gpus = tuple(Gpu(gpu.name, gpu.memory_mib / 1024) for gpu in hardware.gpus)
    free = free_bytes / GIB if free_bytes is not None else None
    return Machine(hardware.cpus, hardware.memory / GIB, gpus, free)


def made(job: Job, folder: Path, settled: Settled, python: Path | None, places: Places) -> Mapping[str, Any]:
    """How the job's adapter was made, also written beside it. ChildFailed, AdapterRejected."""
    gpus = "0" if settled.gpus else ""
    trainer = Interpreter(python, gpus, beside_an_engine(gpus)).facts() if python is not None else {}
    adapter = folder / ADAPTER if settled.served == "adapter" else None
    digests = Digests(places.root / "digests.json")
    document = manifest(
        job, folder, settled.document(), trainer=trainer, digests=digests, at=time.time(), adapter=adapter
    )
    write(folder, document)
    return document


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
