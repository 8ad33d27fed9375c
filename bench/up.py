"""`loragate up` with the demo on real vLLM, for `bench real`: started, asked where everything is, ended.

What it installs stays in the bench's cache. Knows nothing of loads.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.gateway_process import program, program_environ
from bench.load import Endpoint
from bench.peers import PeerFailed, Place, Running, free_port, launch
from bench.real import Side

START_LIMIT_S = 1800.0  # the first time vLLM is installed
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def demo_up(place: Place) -> Iterator[tuple[Side, Side]]:
    """The engine itself, and the gateway in front of it: base and adapters under their names on each side."""
    data, port, admin = place.cache / "up", free_port(), free_port()
    ports = ["--port", str(port), "--admin-port", str(admin)]
    print("Starting loragate up (the first time it installs vLLM, some minutes) ...", file=sys.stderr)
    process = launch("up", [*program(), "up", "--data-dir", str(data), *ports], place, program_environ())
    running = Running("up", process, Endpoint(port), admin_port=admin)
    try:
        _wait_ready(running, place.scratch / "up.log")
        yield _sides(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", data)
    finally:
        running.stop()


def _wait_ready(up: Running, log: Path) -> None:
    while "\nReady: " not in (text := log.read_text(errors="replace")):
        if up.process.poll() is not None or time.monotonic() - up.started > START_LIMIT_S:
            raise PeerFailed("loragate up did not start. It said:\n" + "\n".join(text.splitlines()[-8:]))
        time.sleep(0.2)


def _sides(gateway: str, admin: str, data: Path) -> tuple[Side, Side]:
    key = (data / "demo.key").read_text().strip()
    status = _ask(f"{admin}/admin/v1/status", (data / "admin.key").read_text().strip())
    engine = status["replicas"][0]["url"]
    names = [model["id"] for model in _ask(f"{gateway}/v1/models", key)["data"]]
    # The engine's key is made anew at each start and is nowhere but in its environment.
    process = psutil.Process(json.loads((data / "engine.pid").read_text())["pid"])
    secret = process.environ()["VLLM_API_KEY"]
    resident = [model["id"] for model in _ask(f"{engine}/v1/models", secret)["data"]]
    there = [next(name for name in resident if name.partition("@")[0] == public) for public in names]
    return Side(engine, secret, tuple(there)), Side(gateway, key, tuple(names))


def _ask(url: str, key: str) -> Any:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    with DIRECT.open(request, timeout=10) as answer:
        return json.load(answer)
