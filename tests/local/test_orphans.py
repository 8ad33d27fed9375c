"""After kill -9 of a supervising process the next start finds its engine and ends it, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, replace

import pytest

from gateway.local import pidfile
from gateway.local.places import Places
from tests.local.conftest import ROOT, until
from tests.local.test_supervisor import gone

SUPERVISING = """
import asyncio, sys
from pathlib import Path
from gateway.local.places import Places
from tests.local.conftest import fake_launch, supervise

async def main():
    places = Places(Path(sys.argv[1]))
    supervisor = supervise(places, fake_launch(places))
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    print(supervisor.status.pid, flush=True)
    await task

asyncio.run(main())
"""


async def test_kill_9_of_the_supervising_process_leaves_an_orphan_that_the_next_start_ends(places: Places) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISING, str(places.data), stdout=asyncio.subprocess.PIPE, env=env
    )
    assert parent.stdout is not None
    engine = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await asyncio.sleep(0.1)
    assert not gone(engine), "without a gateway the engine runs on: that is what has to be ended"
    assert await pidfile.end_orphan(places.engine_pid) == engine
    await until(lambda: gone(engine))
    assert not places.engine_pid.exists()
    assert await pidfile.end_orphan(places.engine_pid) is None


@pytest.mark.parametrize("change", ["other start time", "other boot"])
async def test_a_process_that_only_has_the_same_number_is_left_alone(places: Places, change: str) -> None:
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(600)", start_new_session=True
    )
    try:
        record = pidfile.write(places.engine_pid, stranger.pid, 1234)
        assert record is not None
        earlier, other = replace(record, created=record.created - 100), replace(record, boot="x")
        places.engine_pid.write_text(json.dumps(asdict(earlier if change == "other start time" else other)))
        assert await pidfile.end_orphan(places.engine_pid) is None
        assert not gone(stranger.pid)
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_torn_pid_file_is_no_reason_not_to_start(places: Places) -> None:
    places.engine_pid.write_text('{"pid": 1')
    assert await pidfile.end_orphan(places.engine_pid) is None
