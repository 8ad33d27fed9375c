"""What `up` checks before the long work: data directory, disk, ports, one at a time. One sentence each."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import StorageFull
from gateway.local import ports
from gateway.local.errors import AlreadyRunning, CannotStart, PortTaken
from gateway.local.locks import hold
from gateway.local.places import Places, need_space, unwritable, write_private
from gateway.local.timings import Timings
from tests.local.conftest import ROOT


def test_a_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match=r"Cannot write to the data directory .*--data-dir or LORAGATE_HOME"):
        Places(tmp_path / "file" / "data").prepare()


def test_a_full_disk_is_not_called_a_matter_of_rights(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(unwritable(tmp_path, full), StorageFull)
    assert "Free some space" in unwritable(tmp_path, full).message
    denied = unwritable(tmp_path, PermissionError(errno.EACCES, "Permission denied"))
    assert "Permission denied. Name another" in denied.message


def test_the_data_directory_is_private(places: Places) -> None:
    assert stat.S_IMODE(places.data.stat().st_mode) == 0o700


def test_no_disk_space(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match=r"The demo needs 1000000000 GB .* Free some space"):
        need_space(tmp_path / "not" / "yet", 10**18, "The demo")
    need_space(tmp_path, 1, "The demo")


def test_a_taken_port_names_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port} .*--admin-port"):
            ports.need_free("127.0.0.1", port, "--admin-port")
    ports.need_free("127.0.0.1", port, "--admin-port")


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(CannotStart, match=r"Cannot listen on 192\.0\.2\.1"):
        ports.need_free("192.0.2.1", 8000, "--port")


HOLDING = """
import sys
from pathlib import Path
from gateway.local.locks import hold
with hold(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_already_running_names_the_holder_and_kill_9_frees_it(places: Places) -> None:
    argv, env = [sys.executable, "-c", HOLDING, str(places.lock)], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match=f"process {other.pid} runs"), hold(places.lock, "process {pid} runs"):
            pass
        other.kill()
        other.wait()
    with hold(places.lock, "process {pid} runs"):
        assert places.lock.read_text() == f"{os.getpid()}\n"


def test_a_private_file_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "demo.key"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["demo.key"]


def test_timings_survive_a_torn_file_and_a_lost_disk(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timings.json")
    assert timings.last("engine-start") is None
    timings.keep("engine-start", 31.26)
    timings.keep("other", 2)
    assert timings.last("engine-start") == 31.3
    timings.path.write_text("{")
    assert timings.last("engine-start") is None
    Timings(tmp_path / "nowhere" / "timings.json").keep("x", 1.0)
