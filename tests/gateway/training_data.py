"""Small training files, and a worker's writes, for the tests of the doors of training."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters.db import Database
from training import store_jobs as store
from training.types import Checkpoint, Job, JobState

SECONDS = 1_900_000_000.0


def rows(count: int = 12, said: str = "hi") -> bytes:
    """JSONL of chat rows, as OpenAI takes them."""
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": f"{said} {i}"}, {"role": "assistant", "content": f"yes {i}"}]}
        ).encode()
        + b"\n"
        for i in range(count)
    )


def preferences(count: int = 12) -> bytes:
    """JSONL of preference rows."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return b"".join(
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": f"hi {i}"}]},
                "preferred_output": said("yes"),
                "non_preferred_output": said("no"),
            }
        ).encode()
        + b"\n"
        for i in range(count)
    )


class Worker:
    """Moves jobs along by writing into the database, as a worker does."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def change(self, job_id: str, **fields: Any) -> Job:
        return await self._db.write(lambda conn: store.change(conn, job_id, **fields))

    async def take(self, job_id: str, **fields: Any) -> Job:
        """It runs now."""
        fields = {"state": JobState.RUNNING, "worker": "w1", "seen_at": time.time(), "started_at": time.time()} | fields
        return await self.change(job_id, **fields)

    async def tell(self, job_id: str, message: str, **more: Any) -> None:
        def tell(conn: sa.Connection) -> None:
            store.tell(conn, job_id, time.time(), message, **more)

        await self._db.write(tell)

    async def keep(self, job_id: str, step: int, **metrics: Any) -> None:
        made = Checkpoint(job_id, step, time.time(), f"/somewhere/checkpoint-{step}", metrics)
        await self._db.write(lambda conn: store.keep_checkpoint(conn, made))


@asynccontextmanager
async def worker(data_dir: Path) -> AsyncIterator[Worker]:
    db = Database.open(f"sqlite:///{data_dir / 'loragate.db'}")
    try:
        yield Worker(db)
    finally:
        db.close()
