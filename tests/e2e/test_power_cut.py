"""kill -9 of a whole `loragate up` on real vLLM while adapters are being registered: the next `up` makes it good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from gateway.local.process import kill_tree, tree
from tests.e2e.conftest import ROOT, Live, _ready
from tests.e2e.test_demo_answers import pairs
from tests.e2e.variants import CONFIG, WEIGHTS, nudged
from training.demo import ADAPTERS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(700)]
CUSTOMER = "customer-service"
SAFE = 4  # registered before the cut


@contextlib.contextmanager
def up(engine_python: Path, data: Path, log: Path) -> Iterator[Live]:
    command = [sys.executable, "-m", "gateway", "up", "--data-dir", str(data), "--port", "0", "--admin-port", "0"]
    environ = {**os.environ, "LORAGATE_ENGINE_PYTHON": str(engine_python)}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=out, stderr=out, text=True)
    try:
        live = _ready(process, data, log)
        yield replace(live, output=log.read_text())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)


def registered(live: Live, folders: list[Path], enough: threading.Event) -> None:
    """Register one after the other until the gateway is gone; `enough` is set when SAFE of them are acknowledged."""
    for at, folder in enumerate(folders):
        done = live.loragate("adapters", "register", str(folder), "--name", f"shift-{at}", "--promote")
        if done.returncode != 0:
            return
        if at + 1 == SAFE:
            enough.set()


def ask(live: Live, model: str) -> str | None:
    with openai.OpenAI(base_url=live.url, api_key=live.api_key, timeout=100, max_retries=0) as client:
        question = pairs(model if model in ADAPTERS else CUSTOMER)[0][0]
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48
        )
    return answer.choices[0].message.content


def test_the_next_start_ends_the_orphan_and_finds_everything_in_order(engine_python: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    folders = [nudged(CUSTOMER, tmp_path / f"folder-{at}", at) for at in range(60)]
    enough = threading.Event()
    with up(engine_python, data, tmp_path / "first.log") as live:
        loop = threading.Thread(target=registered, args=(live, folders, enough))
        loop.start()
        assert enough.wait(100)
        live.process.kill()
        live.process.wait(10)
        loop.join(100)
    orphan = json.loads((data / "engine.pid").read_text())["pid"]
    assert tree(orphan), "without its gateway the engine runs on"
    try:
        with up(engine_python, data, tmp_path / "second.log") as live:
            assert f"Ended the engine (process {orphan})" in live.output
            assert tree(orphan) == []
            listed: list[dict[str, Any]] = json.loads(live.loragate("adapters", "list", "--json").stdout)["data"]
            names = [adapter["name"] for adapter in listed]
            assert set(names) >= {*ADAPTERS, *(f"shift-{at}" for at in range(SAFE))}
            wanted = {f"{a['name']}@{v['version']}" for a in listed for v in a["versions"]}
            assert {path.name for path in (data / "adapters").iterdir()} == wanted
            for folder in (data / "adapters").iterdir():
                assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}
            answers = {name: ask(live, name) for name in (a["name"] for a in listed if a["live"])}
            assert answers == {n: pairs(n if n in ADAPTERS else CUSTOMER)[0][1] for n in answers}
            again = live.loragate("adapters", "register", str(folders[-1]), "--name", "shift-last", "--promote")
            assert again.returncode == 0, again.stderr
            family = psutil.Process(live.process.pid).children(recursive=True)
        assert live.process.returncode == 0
        assert psutil.wait_procs(family, timeout=10)[1] == []
    finally:
        kill_tree(orphan)
