"""kill -9 at any moment: what was acknowledged is there, what was not is absent or complete, nothing is left over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from adapters import store
from adapters.db import Database
from adapters.intake import check
from adapters.reconcile import Reconciler
from adapters.service import AdapterService
from adapters.shelf import Shelf
from adapters.types import Adapter, VersionState

KILLS = 20
REPOSITORY = Path(__file__).resolve().parents[2]


async def _line(process: Process) -> list[str]:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().split()


async def _one_life(process: Process, moment: random.Random) -> list[tuple[str, str, str]]:
    """Start a worker, kill it somewhere; (what, name, version) of all that it acknowledged."""
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    worker, said, limit = 0, list[tuple[str, str, str]](), moment.randint(0, 6)
    while True:
        line = await _line(process)
        if line[0] == "over":
            return said
        if line[0] == "pid":
            worker = int(line[1])
        else:
            said.append((line[0], line[1], line[2]))
        if worker and len(said) >= limit:
            await asyncio.sleep(moment.uniform(0, 0.03))  # somewhere in the middle of the next registration
            os.kill(worker, signal.SIGKILL)
            worker, limit = 0, sys.maxsize


async def _inspect(data: Path, said: list[tuple[str, str, str]]) -> dict[str, Adapter]:
    """Start as a gateway does, and check that registry and store agree to the byte."""
    db = Database.open(f"sqlite:///{data / 'loragate.db'}")
    db.migrate()
    assert await db.read(lambda conn: conn.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"
    shelf = Shelf(data / "adapters")
    service = AdapterService(db, shelf, Reconciler(db, [], clock=time.time), clock=time.time)
    await service.recover()
    page, _ = await service.list()
    versions = [version for adapter in page for version in adapter.versions]
    assert VersionState.DAMAGED not in {version.state for version in versions}
    known = await db.read(store.known)
    on_disk = await asyncio.to_thread(os.listdir, shelf.root) if known or said else []
    db.close()
    assert set(on_disk) == set(known) or not known  # an empty registry never deletes a finished folder
    for version in versions:
        found = await asyncio.to_thread(check, shelf.path(version.engine_name), None, 16)
        assert found.digest == version.digest
    return {adapter.name: adapter for adapter in page}


async def test_killed_anywhere_and_started_again_it_is_consistent(tmp_path: Path) -> None:
    moment = random.Random(20261123)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.adapters.registrar", str(tmp_path), cwd=REPOSITORY, stdin=PIPE, stdout=PIPE
    )
    done: set[tuple[str, str]] = set()
    gone: set[tuple[str, str]] = set()
    acknowledged = 0
    for _ in range(KILLS):
        said = await _one_life(process, moment)
        there = await _inspect(tmp_path, said)
        done |= {(name, version) for what, name, version in said if what == "done"}
        gone |= {(name, version) for what, name, version in said if what == "gone"}
        acknowledged += len(said)
        present = {(adapter.name, version.version) for adapter in there.values() for version in adapter.versions}
        assert len(done - gone - present) <= 1  # at most the removal that was under way
        assert not gone & present
        for name in {name for what, name, _ in said if what == "done"}:
            last = [version for what, of, version in said if what == "done" and of == name][-1]
            live, previous = there[name].live, there[name].previous
            assert live == last or previous == last  # or one more was promoted, not yet acknowledged
        done &= present | gone
    assert process.stdin is not None
    process.stdin.close()
    assert await process.wait() == 0
    assert acknowledged >= KILLS
