"""The supervisor over real processes: ready, crash and restart, refusal, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from gateway.local.errors import EngineRefused
from gateway.local.places import Places
from gateway.local.supervisor import Pace, State, Supervisor
from tests.local.conftest import PATIENCE_S, QUICK, fake_launch, supervise, until

# A worker that takes no SIGTERM, started by a leader that does: what torchrun's and vLLM's workers can be like.
STUBBORN = """
import signal, subprocess, sys, time
worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").write(str(child.pid) + "\\n")
time.sleep(600)
"""


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def with_restarts(supervisor: Supervisor, state: State, at_least: int) -> bool:
    return supervisor.status.state is state and supervisor.status.restarts >= at_least


async def test_an_engine_is_ready_once_it_answers_and_gone_once_cancelled(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places))
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    (state,) = supervisor.states()
    assert (state["state"], state["model"], state["reason"], state["restarts"]) == ("ready", "demo-base", None, 0)
    pid = state["pid"]
    assert places.engine_pid.exists()
    await stop(task)
    assert gone(pid)
    assert not places.engine_pid.exists()
    assert supervisor.status.state is State.STOPPED


async def test_an_engine_that_never_answered_gets_no_grace(places: Places) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('EngineCore', flush=True); "
    launch = fake_launch(places, argv=(sys.executable, "-c", deaf + "time.sleep(600)"))
    supervisor = supervise(places, launch, Pace(poll_s=0.02, grace_s=600.0))
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.stage() == "starting the engine core")
    pid = supervisor.status.pid
    async with asyncio.timeout(PATIENCE_S):
        await stop(task)
    assert pid is not None
    assert gone(pid)


async def test_a_wrong_base_on_the_port_is_not_ready(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places, "--served-model-name", "another"))
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.stage() == "opening the API")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(supervisor.ready(), 0.3)
    assert supervisor.status.state is State.STARTING
    await stop(task)


async def test_a_crash_after_ready_is_restarted_with_the_reason_shown(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places, "--crash-after", "0.3"))
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    first = supervisor.status.pid
    await until(lambda: with_restarts(supervisor, State.READY, 2))
    assert supervisor.status.pid != first
    assert not task.done()
    await stop(task)


async def test_kill_9_of_the_engine_is_named_and_restarted(places: Places) -> None:
    pace = Pace(poll_s=0.02, grace_s=5.0, stable_s=60.0, backoff_s=(60.0,))
    supervisor = supervise(places, fake_launch(places), pace)
    task = asyncio.create_task(supervisor.run())
    await supervisor.ready()
    psutil.Process(supervisor.status.pid).kill()
    await until(lambda: supervisor.status.state is State.RESTARTING)
    assert "signal 9" in supervisor.status.reason
    await stop(task)


async def test_a_refused_model_fails_at_once_in_the_engines_own_words(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places, "--refuse", "Model architectures ['Nope'] are not supported."))
    await supervisor.run()
    with pytest.raises(EngineRefused, match=r"Model architectures \['Nope'\] are not supported") as caught:
        await supervisor.ready()
    assert "type=value_error" not in caught.value.message
    assert str(places.engine_log) in caught.value.message
    assert supervisor.status.restarts == 0


async def test_a_silent_end_before_ready_is_tried_twice_then_told(places: Places, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    code = f"open({str(tries)!r}, 'a').write('x'); raise SystemExit(3)"
    supervisor = supervise(places, fake_launch(places, argv=(sys.executable, "-c", code)))
    await supervisor.run()
    with pytest.raises(EngineRefused, match="exit code 3 without a word"):
        await supervisor.ready()
    assert tries.read_text() == "xx"


async def test_a_program_that_does_not_exist_is_told(places: Places) -> None:
    supervisor = supervise(places, fake_launch(places, argv=("/nowhere/python",)))
    await supervisor.run()
    with pytest.raises(EngineRefused, match="/nowhere/python"):
        await supervisor.ready()


@pytest.mark.parametrize("how", ["cancelled", "killed", "leader dies"])
async def test_workers_end_with_the_engine(places: Places, tmp_path: Path, how: str) -> None:
    note = tmp_path / "worker.pid"
    argv = (sys.executable, "-c", STUBBORN, str(note))
    pace = Pace(poll_s=0.02, grace_s=0.2, stable_s=60.0, backoff_s=(60.0,))
    supervisor = supervise(places, fake_launch(places, argv=argv), pace)
    task = asyncio.create_task(supervisor.run())
    await until(lambda: note.exists() and note.read_text().endswith("\n"))
    worker = int(note.read_text())
    assert not gone(worker)
    if how == "killed":
        supervisor.kill()
    elif how == "leader dies":
        psutil.Process(supervisor.status.pid).kill()
    else:
        task.cancel()
    await until(lambda: gone(worker))
    await stop(task)


async def test_the_stage_of_a_start_comes_from_the_log(places: Places) -> None:
    line = "(EngineCore pid=7) INFO 11-23 05:35:56 [default_loader.py:501] Loading weights took 0.12 seconds"
    code = f"import time; print({line!r}, flush=True); time.sleep(600)"
    supervisor = supervise(places, fake_launch(places, argv=(sys.executable, "-c", code)), QUICK)
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.stage() == "loading the weights")
    await stop(task)
