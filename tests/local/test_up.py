"""`loragate up` as a person runs it: a real process, the real gateway, the fake engine behind vLLM's command line."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.local.places import Places
from gateway.local.process import run
from tests import ports
from tests.fake_faults import Fault
from tests.fake_vllm import FakeVLLM
from tests.local.conftest import PATIENCE_S, ROOT, until
from tests.local.test_supervisor import gone

LAST_LINE = "Stop     Ctrl-C"


@dataclass
class Up:
    """One `loragate up` process and what it has written so far."""

    child: asyncio.subprocess.Process
    out: Path
    err: Path
    port: int
    admin_port: int

    async def ready(self) -> str:
        await until(lambda: LAST_LINE in self.out.read_text() or self.child.returncode is not None)
        assert LAST_LINE in self.out.read_text(), self.err.read_text()
        return self.out.read_text()

    async def end(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.child.returncode is None:
            self.child.send_signal(number)
        return await asyncio.wait_for(self.child.wait(), PATIENCE_S)


Start = Callable[..., Awaitable[Up]]


@pytest.fixture
async def start(places: Places, engine_python: Path, offline: dict[str, str]) -> AsyncIterator[Start]:
    """Start `loragate up` with flags; whatever still runs at the end of the test is ended."""
    started: list[Up] = []

    async def start_(*flags: str, port: int | None = None, own: bool = True) -> Up:
        found = Up.__new__(Up)
        found.port, found.admin_port = port or ports.unused(), ports.unused()
        found.out, found.err = (places.data.parent / f"{len(started)}.{name}" for name in ("out", "err"))
        listen = ("--port", str(found.port), "--admin-port", str(found.admin_port))
        argv = (sys.executable, "-m", "gateway", "up", "--data-dir", str(places.data), *listen, *flags)
        env = {**offline, "LORAGATE_ENGINE_PYTHON": str(engine_python)} if own else offline
        with found.out.open("wb") as out, found.err.open("wb") as err:
            found.child = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, env=env, stdout=out, stderr=err)
        started.append(found)
        return found

    yield start_
    for up in started:
        await up.end()


def block(text: str, first: str) -> str:
    """The lines from the one that begins with `first` to the next empty one: what a person pastes."""
    lines = text.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(first))
    return "\n".join(lines[begin : lines.index("", begin)])


async def test_from_nothing_to_answers_and_back_to_nothing(start: Start, places: Places) -> None:
    up = await start()
    text = await up.ready()
    shell = {**os.environ, "HOME": str(places.data.parent)}
    assert "cat ~/data/demo.key" in text, "short enough for one line of a terminal"
    if shutil.which("curl"):
        answer = json.loads((await run(["sh", "-c", block(text, "curl") + " -s"], env=shell)).lines[-1])
        assert answer["model"].startswith("customer-service@")
    snippet = await run([sys.executable, "-c", block(text, "from openai")], env=shell)
    assert snippet.code == 0, snippet.text
    assert snippet.lines[-1]
    operate = text[text.index("Operate  ") :].splitlines()[0].removeprefix("Operate  ").split(", ")
    assert len(operate) == 2
    for command in operate:
        done = await run(
            ["sh", "-c", command.replace("loragate", f"{sys.executable} -m gateway", 1)], env=dict(os.environ)
        )
        assert done.code == 0, (command, done.text)
    assert stat.S_IMODE(places.demo_key.stat().st_mode) == 0o600
    key = places.demo_key.read_text().strip()
    assert key not in text + up.err.read_text() + places.gateway_log.read_text()
    engine = json.loads(places.engine_pid.read_text())["pid"]

    second = await start()
    assert await second.child.wait() == 1
    assert f"already runs here (process {up.child.pid})" in second.err.read_text()

    assert await up.end() == 0
    assert gone(engine)
    assert not places.engine_pid.exists()

    again = await start()
    text = await again.ready()
    assert "Registering" not in again.err.read_text().replace("Registering the demo's adapters: done", "")
    assert places.demo_key.read_text().strip() == key
    assert "code-generation" in text
    assert await again.end(signal.SIGTERM) == 0


async def test_ctrl_c_is_heard_at_once_and_a_slow_stop_says_why(start: Start, places: Places) -> None:
    async with FakeVLLM("their-base") as engine, httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        up = await start("--engine", engine.url)
        await up.ready()
        engine.script(Fault.STALL_BETWEEN)
        headers = {"authorization": f"Bearer {places.demo_key.read_text().strip()}"}
        body = {"model": "their-base", "stream": True, "messages": [{"role": "user", "content": "stay"}]}
        url = f"http://127.0.0.1:{up.port}/v1/chat/completions"
        async with client.stream("POST", url, json=body, headers=headers) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            up.child.send_signal(signal.SIGINT)
            await until(lambda: "Ctrl-C again" in up.err.read_text())
            assert up.child.returncode is None
            assert await up.end() == 0, "the second one"
            assert "shutting down" in "".join([line async for line in lines])
    said = up.err.read_text().splitlines()[-2:]
    assert said == ["Stopping.", "Answers on their way have 30 s to end. Ctrl-C again cuts them off."]


async def test_an_engine_that_dies_is_told_on_the_terminal_and_comes_back(start: Start, places: Places) -> None:
    up = await start()
    await up.ready()
    os.kill(json.loads(places.engine_pid.read_text())["pid"], signal.SIGKILL)
    await until(lambda: "vLLM is ready again." in up.err.read_text())
    assert "vLLM ended by signal 9 (out of memory, or killed) and is started again." in up.err.read_text()
    assert await up.end() == 0


async def test_an_engine_that_does_not_answer_is_told_while_it_is_waited_for(start: Start) -> None:
    up = await start("--engine", f"http://127.0.0.1:{ports.unused()}")
    await until(lambda: "It is asked again until it is ready." in up.err.read_text())
    assert "cannot be reached. Is it running there?\n" in up.err.read_text()
    assert await up.end() == 0


async def test_after_kill_9_the_next_start_ends_the_orphan(start: Start, places: Places) -> None:
    up = await start()
    await up.ready()
    engine = json.loads(places.engine_pid.read_text())["pid"]
    await up.end(signal.SIGKILL)
    assert not gone(engine)
    again = await start()
    await again.ready()
    assert gone(engine)
    assert f"Ended the engine (process {engine})" in again.err.read_text()
    assert json.loads(places.engine_pid.read_text())["pid"] != engine


async def test_a_refused_model_ends_everything_with_the_engines_own_words(start: Start, places: Places) -> None:
    up = await start("--", "--refuse", "Model architectures ['Nope'] are not supported for now.")
    assert await up.child.wait() == 1
    assert "vLLM's last error: Model architectures ['Nope'] are not supported for now." in up.err.read_text()
    assert LAST_LINE not in up.out.read_text()
    assert not places.engine_pid.exists()


async def test_an_engine_that_runs_already_is_used_and_none_is_started(start: Start, places: Places) -> None:
    async with FakeVLLM("their-base") as engine:
        up = await start("--engine", engine.url)
        text = await up.ready()
        assert '"model": "their-base"' in text
        assert not places.engine_log.exists()
        assert await up.end() == 0
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            assert (await client.get(f"{engine.url}/health")).status_code == 200, "an engine of others is left alone"


async def test_readyz_tells_the_state_while_the_engine_starts(start: Start) -> None:
    up = await start("--", "--start-delay", "600")
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=f"http://127.0.0.1:{up.admin_port}") as client:

        async def answer() -> httpx.Response | None:
            try:
                return await client.get("/readyz")
            except httpx.HTTPError:
                return None

        async with asyncio.timeout(PATIENCE_S):
            while (found := await answer()) is None:
                await asyncio.sleep(0.05)
    assert found.status_code == 503
    assert found.json()["ready"] is False
    assert found.json()["reasons"]
    assert found.json()["replicas"][0]["reason"] == "the engine is starting", "what the supervisor knows"
    assert await up.end() == 0


async def test_what_cannot_work_is_one_sentence_and_exit_code_1(start: Start) -> None:
    up = await start("--engine", "http://127.0.0.1:1", "--model", "x")
    assert await up.child.wait() == 1
    assert "--engine uses engines that already run" in up.err.read_text()
    assert up.err.read_text().count("\n") == 1


async def test_a_flag_that_makes_no_sense_is_told_before_the_long_work(start: Start, places: Places) -> None:
    up = await start("--", "--max-lora-rank", "many", own=False)
    assert await up.child.wait() == 1
    assert up.err.read_text() == "Error: --max-lora-rank takes a number above 0, such as --max-lora-rank 16.\n"
    assert list(places.environments.iterdir()) == []


async def test_a_taken_port_is_told_before_the_long_work(start: Start, places: Places) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = await start(port=taken.getsockname()[1], own=False)
        assert await up.child.wait() == 1
    assert "choose another port with --port" in up.err.read_text()
    assert list(places.environments.iterdir()) == []


async def test_sigterm_while_the_environment_is_made_leaves_nothing_half_made(start: Start, places: Places) -> None:
    up = await start(own=False)
    await until(lambda: any(path.is_dir() for path in places.environments.iterdir()))
    assert await up.end(signal.SIGTERM) == 0
    assert [path for path in places.environments.iterdir() if path.is_dir()] == []
