"""The servers that are compared: how each is started over an engine, and where it then answers.

One start function a peer, one worker each, settings as in production, access logs off. Knows nothing of loads.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from bench.environments import environment
from bench.gateway_process import create_key, gateway_command, gateway_environ
from bench.load import Endpoint, chat_request
from bench.measure import tree
from bench.mock_engine import MODEL

START_LIMIT_S = 90.0


class PeerFailed(Exception):
    """A peer did not start; the message carries the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer may write: `cache` lives on between runs, `scratch` is this run's."""

    cache: Path
    scratch: Path


@dataclass(slots=True)
class Running:
    """A started peer. `ready_s`: from process start to its first 200 on a chat request.

    `started` is read right after exec (psutil's create_time is off by up to a second: btime is whole seconds).
    """

    name: str
    process: subprocess.Popen[bytes]
    endpoint: Endpoint
    ready_s: float = 0.0
    admin_port: int | None = None
    started: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """End the process and everything it started, by id: SIGTERM, then SIGKILL after 5 s."""
        family = [psutil.Process(pid) for pid in tree(self.process.pid) if pid != self.process.pid]
        self.process.terminate()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for left in psutil.wait_procs(family, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    name: str, command: list[str], place: Place, environ: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server with its output in a log file; proxies of the shell are not for loopback."""
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    with (place.scratch / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=place.scratch,
            env={**clean, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to handle
        )


def start_mock(place: Place, *flags: str) -> Running:
    """The engine everybody answers from."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("mock_engine.py")),
        "--port",
        str(port := free_port()),
        *flags,
    ]
    return wait_ready(Running("direct", launch("direct", command, place), Endpoint(port)), place)


def start_nginx(place: Place, engine: int) -> Running:
    port = free_port()
    home = place.scratch / "nginx"
    home.mkdir(exist_ok=True)
    config = home / "nginx.conf"
    config.write_text(NGINX.format(home=home, engine=engine, port=port, user="user root;" if os.geteuid() == 0 else ""))
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    process = launch("nginx", [binary, "-c", str(config), "-e", str(home / "error.log")], place)
    return wait_ready(Running("nginx", process, Endpoint(port)), place)


NGINX = """
{user} daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    location / {{ proxy_pass http://engine; }}
  }}
}}
"""


def start_gateway(place: Place, engine: int, data_dir: Path | None = None, name: str = "gateway") -> Running:
    """This gateway, everything on: key, limits of key and model, metrics, usage, health probes."""
    data = data_dir or place.scratch / "gateway-data"
    port, admin = free_port(), free_port()
    command = gateway_command(engine, port, admin, data)
    kept = data / "bench.key"
    environ = gateway_environ(MODEL)
    if not kept.exists():  # the key is made in a start of its own, so that every timed start is alike
        first = Running(name, launch(name, command, place, environ), Endpoint(port), admin_port=admin)
        try:
            wait_ready(first, place, path="/readyz")
            kept.write_text(create_key(admin, data))
        finally:
            first.stop()
    process = launch(name, command, place, environ)
    return wait_ready(Running(name, process, Endpoint(port, kept.read_text()), admin_port=admin), place)


def start_vllm_router(place: Place, engine: int, name: str = "vllm-router") -> Running:
    """With a thread per core, as it comes; named `vllm-router-1-thread` with one, as this gateway has."""
    port = free_port()
    binary = environment("vllm-router", place.cache) / "vllm-router"
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{engine}"]
    command += ["--policy", "round_robin", "--log-level", "warning", "--prometheus-port", str(free_port())]
    environ = {"TOKIO_WORKER_THREADS": "1"} if name.endswith("-1-thread") else {}
    return wait_ready(Running(name, launch(name, command, place, environ), Endpoint(port)), place)


def start_smg(place: Place, engine: int) -> Running:
    port = free_port()
    command = [str(environment("smg", place.cache) / "python"), "-m", "sglang_router.launch_router"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{engine}"]
    command += ["--policy", "round_robin", "--log-level", "warn", "--prometheus-port", str(free_port())]
    return wait_ready(Running("smg", launch("smg", command, place), Endpoint(port)), place)


def start_litellm(place: Place, engine: int) -> Running:
    port, key = free_port(), "sk-bench"
    params = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    config = place.scratch / "litellm.yaml"
    models = [{"model_name": MODEL, "litellm_params": params}]
    config.write_text(yaml.safe_dump({"model_list": models, "general_settings": {"master_key": key}}))
    command = [str(environment("litellm", place.cache) / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    return wait_ready(Running("litellm", launch("litellm", command, place, quiet), Endpoint(port, key)), place)


PEERS: dict[str, Callable[[Place, int], Running]] = {
    "nginx": start_nginx,
    "gateway": start_gateway,
    "vllm-router": start_vllm_router,
    "vllm-router-1-thread": functools.partial(start_vllm_router, name="vllm-router-1-thread"),
    "smg": start_smg,
    "litellm": start_litellm,
}


def wait_ready(peer: Running, place: Place, path: str = "/v1/chat/completions") -> Running:
    """Ask every 3 ms until the first 200 and note the time; else the peer is stopped: PeerFailed with its log's end."""
    deadline = peer.started + START_LIMIT_S
    try:
        while time.monotonic() < deadline and peer.process.poll() is None:
            if _answers(peer.endpoint, path):
                peer.ready_s = time.monotonic() - peer.started
                return peer
            time.sleep(0.003)
    finally:  # Ctrl-C too: nobody else knows the process yet
        if not peer.ready_s:
            peer.stop()
    lines = (place.scratch / f"{peer.name}.log").read_text(errors="replace").splitlines()
    said = "\n".join(lines[-8:])
    raise PeerFailed(f"{peer.name} gave no 200 in {time.monotonic() - peer.started:.0f} s. Its log ends:\n{said}")


def _answers(endpoint: Endpoint, path: str) -> bool:
    bearer = {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=5)
    try:
        if path == "/v1/chat/completions":
            connection.request("POST", path, chat_request(MODEL), {"content-type": "application/json", **bearer})
        else:
            connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
