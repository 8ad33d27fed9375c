"""The real things, once per session: managed environments made by the product's own code, and `loragate up` as a child.

Environments are kept between sessions (LORAGATE_TEST_CACHE, else the user's cache folder). An interpreter that
already has everything is named with LORAGATE_ENGINE_PYTHON or LORAGATE_TRAINING_PYTHON, as for `up` itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from platformdirs import user_cache_path

from gateway.local import hardware
from gateway.local.display import Display
from gateway.local.environments import Environments
from gateway.local.pins import kinds
from gateway.local.places import Places
from gateway.local.platforms import engine_kind

START_S = 300  # the engine takes half a minute; a machine under load several times that
FUNCTION_S = 120
ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's deadline begins when its fixtures are there: they may have to install an environment first.

    And whoever uses a real environment is a test of the real thing, also where it forgot to say so.
    """
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            given = item.get_closest_marker("timeout")
            item.add_marker(pytest.mark.timeout(given.args[0] if given else FUNCTION_S, func_only=True), append=False)
            for fixture in {"engine_python", "training_python"} & set(getattr(item, "fixturenames", ())):
                item.add_marker(fixture.removesuffix("_python").replace("training", "trainer"))


@dataclass(frozen=True)
class Live:
    """A running `loragate up`."""

    process: subprocess.Popen[str]
    data_dir: Path
    url: str  # ends in /v1
    admin_url: str
    output: str  # what it printed until it was ready

    @property
    def api_key(self) -> str:
        return (self.data_dir / "demo.key").read_text().strip()

    def loragate(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One CLI command against it."""
        command = [sys.executable, "-m", "gateway", *words]
        environ = {**os.environ, "LORAGATE_HOME": str(self.data_dir), "LORAGATE_ADMIN_URL": self.admin_url}
        return subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True, timeout=120)


def environment(name: str) -> Path:
    """The interpreter of a managed environment, made now if need be (minutes, the first time)."""
    cache = Path(os.environ.get("LORAGATE_TEST_CACHE") or user_cache_path("loragate-tests"))
    places = Places(cache)
    places.prepare()
    display = Display(sys.stderr, clock=time.monotonic)
    made = Environments(places, hardware.look(os.environ), os.environ, display, time.monotonic)
    return asyncio.run(made.ensure(kinds()[name]))


@pytest.fixture(scope="session")
def training_python() -> Path:
    return environment("training")


@pytest.fixture(scope="session")
def engine_python() -> Path:
    return environment(engine_kind(hardware.look(os.environ)))


@pytest.fixture(scope="session")
def live_gateway(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`loragate up` with the demo on real vLLM, ready; ended with Ctrl-C, which must leave nothing behind."""
    data = tmp_path_factory.mktemp("up")
    log = data / "up.out"
    command = [sys.executable, "-m", "gateway", "up", "--data-dir", str(data), "--port", "0", "--admin-port", "0"]
    environ = {**os.environ, "LORAGATE_ENGINE_PYTHON": str(engine_python)}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=out, stderr=out, text=True)
    try:
        yield _ready(process, data, log)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()


def _ready(process: subprocess.Popen[str], data: Path, log: Path) -> Live:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        text = log.read_text()
        assert process.poll() is None, text
        found = re.search(r"^Ready: (http\S+/v1)$", text, re.MULTILINE)
        admin = re.search(r"^Admin +(http://[\d.]+:\d+)", text, re.MULTILINE)
        if found and admin and "Stop " in text:
            assert httpx.get(found[1].removesuffix("/v1") + "/readyz", trust_env=False).status_code == 200
            return Live(process, data, found[1], admin[1], text)
        time.sleep(0.2)
    raise AssertionError(f"not ready within {START_S} s:\n{log.read_text()}")
