"""`loragate worker`: flags → settings → the process that carries out training jobs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import output

if TYPE_CHECKING:
    from adapters.db import Database
    from gateway.settings import Settings
    from training.steps import Steps

PARENT_S = 1.0  # between two looks at whether it is still there
STEPS = "gateway.local.trainer:open_steps"  # called with (data_dir, db, admin_url)


@click.command(epilog="Example: loragate worker --once")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file, as configs/gateway.yaml."
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="The gateway's data directory.")
@click.option("--once", is_flag=True, help="Carry out what waits, then end.")
@click.option("--stop-runs", is_flag=True, help="At the end stop runs at a checkpoint; else they go on by themselves.")
@click.option("--json", "as_json", is_flag=True, help="At the end, print the jobs that were carried as one document.")
@click.option("--steps", default=STEPS, hidden=True)
@click.option("--parent", type=int, hidden=True)
def worker(
    config: Path | None,
    data_dir: Path | None,
    once: bool,
    stop_runs: bool,
    as_json: bool,
    steps: str,
    parent: int | None,
) -> None:
    """Run the worker that carries out training jobs, until SIGTERM or Ctrl-C.

    One worker for each data directory. It takes one run at a time for each GPU, or one on the processor, and checks
    the next job's data beside it. What it leaves running when it ends is found again at its next start.

    \b
    loragate worker
    loragate worker --once --data-dir ./data
    """
    from adapters.db import Database
    from gateway import logs, settings
    from gateway.local.locks import hold
    from gateway.local.places import Places as LocalPlaces
    from training.places import Places

    flags = {"data_dir": None if data_dir is None else str(data_dir)}
    loaded = settings.load(os.environ, file=config, flags=flags)
    LocalPlaces(loaded.data_dir).prepare()
    places = Places(loaded.data_dir)
    logs.start(loaded.log.level)
    taken = (
        f"A worker already runs (process {{pid}}) with the data directory {places.data}. "
        "Stop it first, or give this one another --data-dir."
    )
    with ExitStack() as stack:
        stack.enter_context(hold(places.worker_lock, taken))
        db = Database.open(loaded.database)
        stack.callback(db.close)
        db.migrate()
        document = asyncio.run(
            _work(places.data, db, _steps(steps, loaded, db), once=once, stop_runs=stop_runs, parent=parent)
        )
    if as_json:
        output.document(document)


async def _work(
    data: Path, db: Database, steps: Steps, *, once: bool, stop_runs: bool, parent: int | None
) -> dict[str, Any]:
    """Until a signal (a second one: at once), until nothing is left to do, or until the parent is gone."""
    import time

    from training.places import Places
    from training.run import gpu
    from training.run.carrier import Workshop
    from training.run.record import Record
    from training.worker import Worker, identity

    places = Places(data)
    record = Record(db, identity(places, os.urandom), time.time)
    devices = gpu.devices(gpu.look())
    made = Worker(Workshop(record, steps, places), devices)
    where = "on the processor" if devices == (gpu.CPU,) else "on GPU " + ", ".join(devices)
    click.echo(f"{record.worker} takes training jobs of {data}, {where}. Ctrl-C ends it, not its runs.", err=True)

    ending = asyncio.Event()
    running = asyncio.ensure_future(made.run(ending, once=once, stop_runs=stop_runs))

    def end() -> None:
        if ending.is_set():
            running.cancel()
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    orphaned = asyncio.ensure_future(_orphaned(parent, ending)) if parent is not None else None
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if orphaned is not None:
        orphaned.cancel()
    jobs = [await record.job(job_id) for job_id in made.carried]
    shown = [{"id": job.id, "name": job.name, "state": job.state.value} for job in jobs]
    return {"worker": record.worker, "devices": list(devices), "jobs": shown}


async def _orphaned(parent: int, ending: asyncio.Event) -> None:
    """A gateway that was killed must not leave a worker that nobody knows of."""
    while os.getppid() == parent:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(PARENT_S)
    ending.set()


def _steps(name: str, settings: Settings, db: Database) -> Steps:
    module, _, function = name.partition(":")
    admin_url = f"http://{settings.admin.host}:{settings.admin.port}"
    made: Steps = getattr(importlib.import_module(module), function)(settings.data_dir, db, admin_url)
    return made
