"""What the machine is, and the sentence for each one that has no wheels."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.local import hardware, platforms
from gateway.local.errors import PlatformUnsupported
from gateway.local.hardware import Gpu, Hardware

GOOD = Hardware("Linux", "x86_64", (2, 36), 2, 8 << 30, (), (), True)
H200 = Gpu("NVIDIA H200", 143771, "580.95.05")


def test_a_good_machine_passes() -> None:
    platforms.need_platform(GOOD)
    platforms.need_platform(replace(GOOD, machine="aarch64", glibc=(2, 28)))
    assert platforms.engine_kind(GOOD) == "engine-cpu"
    assert platforms.engine_kind(replace(GOOD, gpus=(H200,))) == "engine-cuda"


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (replace(GOOD, system="Darwin"), "macOS.*--engine URL.*Linux container"),
        (replace(GOOD, system="Windows"), "WSL2"),
        (replace(GOOD, machine="riscv64"), "riscv64.*--engine URL"),
        (replace(GOOD, glibc=None), "musl.*Debian or Ubuntu container"),
        (replace(GOOD, glibc=(2, 27)), r"glibc 2\.28 or later and this system has 2\.27.*--engine"),
    ],
)
def test_no_wheel_for_this_platform_says_what_works_there(machine: Hardware, says: str) -> None:
    with pytest.raises(PlatformUnsupported, match=says):
        platforms.need_platform(machine)


def test_an_old_driver_is_told_with_the_ways_out() -> None:
    with pytest.raises(PlatformUnsupported, match=r"535\.1.*580.*LORAGATE_ENGINE_PYTHON.*CUDA_VISIBLE_DEVICES=-1"):
        platforms.engine_kind(replace(GOOD, gpus=(replace(H200, driver="535.1"),)))


@pytest.mark.parametrize(("running", "side"), [((3, 10), "older"), ((3, 14), "newer")])
def test_a_python_without_wheels_and_no_other_on_path(tmp_path: Path, running: tuple[int, int], side: str) -> None:
    with pytest.raises(PlatformUnsupported, match=rf"3\.{running[1]}, {side}.*Install Python 3\.11"):
        platforms.suitable_python({"PATH": str(tmp_path)}, running=running)


def test_another_python_on_path_is_taken(tmp_path: Path) -> None:
    for name in ("python3.11", "python3.12"):
        (tmp_path / name).symlink_to(sys.executable)
    found = platforms.suitable_python({"PATH": str(tmp_path)}, running=(3, 14))
    assert (found.path, found.version) == (tmp_path / "python3.12", "3.12")


def test_the_running_python_is_taken_where_it_will_do() -> None:
    assert platforms.suitable_python({}, running=(3, 13)).path == Path(sys.executable)


def test_gpus_are_read_from_the_drivers_own_program(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 580.95.05'\necho 'NVIDIA L4, 23034, 580.95.05'\n")
    program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert hardware.look(environ).gpus == (H200, Gpu("NVIDIA L4", 23034, "580.95.05"))
    assert hardware.look({**environ, "CUDA_VISIBLE_DEVICES": "-1"}).gpus == ()
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' ; exit 9\n")
    assert hardware.look(environ).gpus == ()


def test_this_machine_is_looked_at() -> None:
    found = hardware.look(os.environ)
    assert found.memory > 1 << 28
    assert found.cpus >= 1
