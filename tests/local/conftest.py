"""What the tests of this room share: a data directory, hand-made wheels, a command that stands for vLLM's Python."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.local.display import Display
from gateway.local.engine import Launch
from gateway.local.enginelog import EngineLog
from gateway.local.places import Places
from gateway.local.supervisor import Pace, Supervisor
from tests import ports

ROOT = Path(__file__).resolve().parents[2]
QUICK = Pace(poll_s=0.02, grace_s=5.0, stable_s=60.0, backoff_s=(0.01, 0.02))
PATIENCE_S = 30.0  # a guard against hanging, not a figure that is asserted


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; TimeoutError when it never does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(tmp_path / "data")
    found.prepare()
    return found


@pytest.fixture
def display(tmp_path: Path) -> Iterator[Display]:
    with (tmp_path / "display.txt").open("w") as stream:
        yield Display(stream, clock=time.monotonic, terminal=False)


def fake_launch(places: Places, *flags: str, argv: tuple[str, ...] | None = None) -> Launch:
    """The fake engine as a process, with the key and the base that the supervisor is told of."""
    port = ports.unused()
    fake = (sys.executable, "-m", "tests.fake_vllm", "--host", "127.0.0.1", "--port", str(port), "--base", "demo-base")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "VLLM_API_KEY": "engine-secret"}
    return Launch(
        (argv or fake) + flags, env, places.data, f"http://127.0.0.1:{port}", port, "demo-base", "engine-secret"
    )


def supervise(places: Places, launch: Launch, pace: Pace = QUICK) -> Supervisor:
    return Supervisor(launch, EngineLog(places.engine_log), places.engine_pid, clock=time.time, pace=pace)


def wheel(folder: Path, name: str, version: str = "1.0") -> Path:
    """A minimal wheel: one module and its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{place},,\n" for place in (*files, f"{info}/RECORD")))
    return path


def simple_index(folder: Path, *wheels: Path) -> str:
    """A package index on this disk: `file://…/<name>/index.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in wheels:
        name = path.name.split("-")[0]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "index.html").write_text(f'<a href="{path.as_uri()}#sha256={digest}">{path.name}</a>')
    return folder.as_uri()


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """An environment in which pip knows one empty index and nothing else."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": simple_index(tmp_path / "empty-index"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


@pytest.fixture
def engine_python(tmp_path: Path) -> Path:
    """A command that answers as the Python of an engine environment does, with the fake engine in vLLM's place."""
    path = tmp_path / "engine-python"
    path.write_text(
        "#!/bin/sh\n"
        'case "$1 $2" in\n'
        '  "-m vllm.entrypoints.openai.api_server") shift 2\n'
        f'    PYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.fake_vllm "$@";;\n'
        '  "-c "*find_spec*) exit 0;;\n'
        "esac\n"
        f'exec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    return path
