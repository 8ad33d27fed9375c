"""What OpenAI's clients expect beside the model: its checkpoints as models of their own, and the figures as a file.

Begun again after a crash it does nothing twice. Must not know HTTP doors.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.db import Database
from adapters.errors import ServiceError
from training import store_jobs as store
from training.concluding import two_files
from training.files import Files
from training.gatewayclient import Gateway
from training.ids import checkpoint_name
from training.preparing import OUTPUT
from training.steps import Tell
from training.types import Checkpoint, FileStatus, Job

PURPOSE, RESULTS = "fine-tune-results", "step_metrics.csv"
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_FIGURES = {"loss": "train_loss", "eval_loss": "valid_loss", "eval_accuracy": "valid_mean_token_accuracy"}


class Publisher:
    """Called after the training of a job that came through /v1/fine_tuning/jobs; what it returns joins the result."""

    def __init__(self, db: Database, files: Files) -> None:
        self._db = db
        self._files = files

    async def __call__(self, job: Job, folder: Path, gateway: Gateway, tell: Tell) -> Mapping[str, Any]:
        if job.request is None:
            return {}
        for made in await self._db.read(lambda conn: store.list_checkpoints(conn, job.id)):
            await self._checkpoint(job, made, folder, gateway, tell)
        return {"result_files": [await self._results(job, folder)]}

    async def _checkpoint(self, job: Job, made: Checkpoint, folder: Path, gateway: Gateway, tell: Tell) -> None:
        """One more adapter, for as long as its owner keeps it; that it cannot be asked ends no job."""
        source = Path(made.folder)
        if made.version is not None or not await asyncio.to_thread(source.is_dir):
            return
        name = checkpoint_name(job.name, made.step)
        try:
            kept = await asyncio.to_thread(two_files, source, folder / "checkpoints" / str(made.step))
            version = await gateway.register(kept, name, notes=f"Step {made.step} of {job.id}", owner=job.owner)
            await gateway.promote(name, version, f"a checkpoint of {job.id}")
        except (ServiceError, OSError) as exc:
            await tell(f"The checkpoint of step {made.step} cannot be asked: {exc}", level="warn")
            return
        await self._db.write(lambda conn: store.keep_checkpoint(conn, replace(made, version=version)))
        await tell(f"Checkpoint created at step {made.step}: {name}")

    async def _results(self, job: Job, folder: Path) -> str:
        """The id of the file with the figures of every step."""
        mark = folder / "results.json"
        if await asyncio.to_thread(mark.exists):
            return str(json.loads(await asyncio.to_thread(mark.read_text))["file"])
        table = await asyncio.to_thread(figures, folder / OUTPUT)
        async with self._files.receiving(RESULTS, PURPOSE, job.owner) as incoming:
            await incoming.write(table)
            stored = await self._files.keep(incoming)
        await self._files.set_status(stored.id, FileStatus.PROCESSED)
        await asyncio.to_thread(mark.write_text, json.dumps({"file": stored.id}))
        return stored.id


def figures(output: Path) -> bytes:
    """trainer_state.json as the table that OpenAI's result files are: one line a logged step."""
    try:
        history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError):
        history = []
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        found = {column: entry[key] for key, column in _FIGURES.items() if key in entry}
        if found:
            rows.setdefault(int(entry["step"]), {}).update(found)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    for step in sorted(rows):
        table.writerow({"step": step, **rows[step]})
    return text.getvalue().encode()
