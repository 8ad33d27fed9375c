"""doctor over a real environment and real ports: JSON, advice, exit code; and what pip is configured with."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local import indexes
from gateway.local.doctor import Check, document
from tests import ports
from tests.local.conftest import ROOT


def doctor(environ: dict[str, str], data: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    free = ("--port", str(ports.unused()), "--admin-port", str(ports.unused()))
    argv = [sys.executable, "-m", "gateway", "doctor", "--data-dir", str(data), *free, *flags]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environ, timeout=60, check=False)


def test_json_is_one_document_with_every_check(offline: dict[str, str], tmp_path: Path) -> None:
    done = doctor(offline, tmp_path / "data", "--json")
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["data"]}
    assert set(checks) >= {
        "python",
        "platform",
        "memory",
        "gpu",
        "libnuma",
        "data directory",
        "disk",
        "sqlite",
        "gateway",
    }
    assert set(checks) >= {"port", "admin port", "environment engine-cpu", "environment training", "index"}
    assert checks["index"]["found"] == f"{offline['PIP_INDEX_URL']} answers"
    assert all(check["advice"] for check in report["data"] if check["state"] != "ok")
    assert (done.returncode == 0) is report["ok"] is not any(check["blocks"] for check in report["data"])
    assert not (tmp_path / "data").exists(), "doctor makes nothing"


def test_a_problem_that_blocks_is_told_with_the_way_out_and_exit_code_1(
    offline: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = doctor(offline, tmp_path / "data", "--port", str(port))
    assert done.returncode == 1
    assert f"PROBLEM  port: Port {port} on 127.0.0.1 is taken by another program" in done.stdout
    assert "choose another port with --port" in done.stdout


def test_a_broken_environment_of_the_users_own_is_told(offline: dict[str, str], tmp_path: Path) -> None:
    done = doctor({**offline, "LORAGATE_ENGINE_PYTHON": "/nowhere/python"}, tmp_path / "data")
    assert "PROBLEM  environment engine-cpu: vllm does not import (/nowhere/python cannot be asked" in done.stdout
    assert "Install what is missing there." in done.stdout


def test_an_environment_whose_packages_import_is_ok_with_versions(offline: dict[str, str], tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("llamafactory", "torch", "peft"):
        (modules / f"{name}.py").touch()
        info = modules / f"{name}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        (info / "top_level.txt").write_text(f"{name}\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{modules}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = doctor({**offline, "LORAGATE_TRAINING_PYTHON": str(python)}, tmp_path / "data")
    assert (
        "ok       environment training: llamafactory 9.9, torch 9.9, peft 9.9, named by LORAGATE_TRAINING_PYTHON"
        in done.stdout
    )


def test_an_environment_of_other_pins_is_told_with_its_folder(offline: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "data" / "environments" / "engine-cpu-0123456789ab"
    (old / "lib").mkdir(parents=True)
    with (old / "lib" / "large.so").open("wb") as file:
        file.truncate(1_300_000_000)
    done = doctor(offline, tmp_path / "data")
    assert "warning  environment engine-cpu-0123456789ab: 1.3 GB that this version does not use" in done.stdout
    assert f"Remove {old}, unless" in done.stdout


def test_only_what_blocks_makes_a_report_bad() -> None:
    warning, problem = Check("a", "warning", "x", "y"), Check("b", "problem", "x", "y", blocks=True)
    assert document([warning])["ok"] is True
    assert document([warning, problem])["ok"] is False


class Answering(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.startswith("/good/") else 503)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"alive":true}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_gateway_is_found_where_it_says_that_it_is(offline: dict[str, str], tmp_path: Path, web: str) -> None:
    (tmp_path / "admin.url").write_text(f"http://{web}\n")
    done = doctor(offline, tmp_path)
    assert f"ok       gateway: running, http://{web} answers" in done.stdout
    assert "admin port:" not in done.stdout


def test_a_gateway_of_another_data_directory_is_in_the_way(offline: dict[str, str], tmp_path: Path, web: str) -> None:
    done = doctor(offline, tmp_path, "--admin-port", web.rpartition(":")[2])
    assert done.returncode == 1
    assert "ok       gateway: not running" in done.stdout
    assert "PROBLEM  admin port: Port" in done.stdout


def test_indexes_are_asked_and_their_credentials_never_shown(offline: dict[str, str], tmp_path: Path, web: str) -> None:
    gone, no = f"http://127.0.0.1:{ports.unused()}/gone", (tmp_path / "no").as_uri()
    environ = {
        **offline,
        "PIP_INDEX_URL": f"http://me:secret@{web}/good",
        "PIP_EXTRA_INDEX_URL": f"http://{web}/bad {gone} {no}",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    found = indexes.check(environ)
    assert [index.problem for index in found] == ["", "HTTP 503", "ConnectError", "there is no such folder", ""]
    assert found[0].shown == f"http://***@{web}/good"
    assert "secret" not in repr(found)


def test_an_index_is_found_where_none_is_configured() -> None:
    environ = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "HOME": "/nonexistent"}
    places, _ = indexes.configured(environ)
    assert len(places) == 1
    assert places[0].startswith("https://")
