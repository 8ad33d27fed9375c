"""The worker beside a local gateway: started as a process of its own, started again when it ends, ended with us.

A process of its own, because what it loads and computes must not stand in the way of requests. Must not know jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from gateway.local.enginelog import EngineLog
from gateway.local.places import Places
from gateway.local.process import kill_tree

BACKOFF_S = (1.0, 5.0, 30.0)
GRACE_S = 60.0  # a run that trains stops at its next step, and writes a checkpoint


@contextlib.asynccontextmanager
async def beside(places: Places, environ: Mapping[str, str], started: asyncio.Event) -> AsyncIterator[None]:
    """A worker for the block, from when `started` is set; at its end runs stop at a checkpoint and queue again."""
    keeping = asyncio.create_task(_keep(places, environ, started))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _keep(places: Places, environ: Mapping[str, str], started: asyncio.Event) -> None:
    await started.wait()
    log = EngineLog(places.worker_log)
    failures = 0
    while True:
        log.cap()
        child = await _spawn(places.data, environ, log)
        try:
            await child.wait()
        finally:
            await _end(child)
        await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
        failures += 1


async def _spawn(data: Path, environ: Mapping[str, str], log: EngineLog) -> asyncio.subprocess.Process:
    output = log.open()
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "worker", "--data-dir", str(data), "--stop-runs"),
            *("--parent", str(os.getpid())),
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
    finally:
        os.close(output)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Asked, and after the grace ended; a run that it leaves is found again at the next start."""
    if child.returncode is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(GRACE_S):
            await child.wait()
    except TimeoutError:
        kill_tree(child.pid)
        await child.wait()
