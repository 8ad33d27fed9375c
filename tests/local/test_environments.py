"""Managed environments made for real from hand-made wheels: whole or not at all, and each failure in a sentence."""

from __future__ import annotations

import io
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import ServiceError, StorageFull
from gateway.local import hardware, pip
from gateway.local.display import Display
from gateway.local.environments import STAMP, Environments
from gateway.local.errors import AlreadyRunning, CannotStart, PackagesMissing, PlatformUnsupported
from gateway.local.filling import Filling
from gateway.local.locks import hold
from gateway.local.pins import Kind, kinds
from gateway.local.places import Places
from gateway.local.process import Outcome, run
from tests.local.conftest import simple_index, wheel


@pytest.fixture
def kind(tmp_path: Path) -> Kind:
    pins = tmp_path / "tiny.txt"
    lines = ["# what it is", "lgfirst==1.0", "lgsecond==1.0 ; python_version >= '3.11'  # why"]
    lines += ["lgnever==1.0 ; python_version < '3'"]
    pins.write_text("\n".join(lines))
    return Kind("tiny", "a tiny engine", pins, 1000, ("lgsecond",), "LORAGATE_ENGINE_PYTHON", first="lgfirst")


def environments(places: Places, environ: dict[str, str], stream: io.StringIO | None = None) -> Environments:
    display = Display(stream or io.StringIO(), clock=time.monotonic, terminal=False)
    return Environments(places, hardware.look(environ), environ, display, time.monotonic)


def made_folders(places: Places) -> list[Path]:
    return [path for path in places.environments.iterdir() if path.is_dir()]


async def test_made_once_then_used_again_the_first_package_from_its_own_index(
    places: Places, kind: Kind, offline: dict[str, str], tmp_path: Path
) -> None:
    own = simple_index(tmp_path / "own-index", wheel(tmp_path / "w1", "lgfirst"))
    wheel(tmp_path / "wheels", "lgsecond")
    environ = {**offline, "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    kind = replace(kind, index=own)
    half_made = environments(places, environ).folder(kind, "3.11")
    stream = io.StringIO()
    made = environments(places, environ, stream)
    for version in ("3.11", "3.12", "3.13"):
        half_made = made.folder(kind, version)
        half_made.mkdir()
        (half_made / "rubbish").touch()  # what a start that was killed leaves behind
    python = await made.ensure(kind)
    code = "import lgfirst, lgsecond; print(lgfirst.VERSION, lgsecond.VERSION)"
    assert (await run([str(python), "-c", code], env=offline)).lines == ("1.0 1.0",)
    assert not (python.parent.parent / "rubbish").exists()
    said = stream.getvalue()
    assert "The configured indexes do not have lgfirst==1.0" in said
    assert "Installing a tiny engine: " in said

    stamp = (python.parent.parent / STAMP).stat().st_mtime_ns
    again = io.StringIO()
    assert await environments(places, environ, again).ensure(kind) == python
    assert (python.parent.parent / STAMP).stat().st_mtime_ns == stamp
    assert again.getvalue() == "", "a second start has nothing to make and nothing to say"
    assert environments(places, environ).existing(kind) == python


@pytest.fixture
async def bare(tmp_path: Path, offline: dict[str, str]) -> Path:
    """An environment with a borrowed pip: made in a tenth of the time of one with its own."""
    folder = tmp_path / "bare"
    await run(
        [f"{sys.base_prefix}/bin/python3", "-m", "venv", "--without-pip", "--system-site-packages", str(folder)],
        env=offline,
    )
    return folder


async def test_no_index_has_the_first_package(kind: Kind, bare: Path, offline: dict[str, str], tmp_path: Path) -> None:
    kind = replace(kind, index=simple_index(tmp_path / "own-index"))
    display = Display(io.StringIO(), clock=time.monotonic)
    with pytest.raises(PackagesMissing) as caught:
        await Filling(kind, bare / "bin" / "python", offline, display, time.monotonic).run(bare, None)
    for word in ("lgfirst==1.0", str(kind.index), "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        assert word in caught.value.message


async def test_no_wheel_of_another_package(kind: Kind, bare: Path, offline: dict[str, str], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "lgfirst")
    environ = {**offline, "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    display = Display(io.StringIO(), clock=time.monotonic)
    with pytest.raises(PackagesMissing, match=r"has lgsecond==1\.0 for this Python and platform"):
        await Filling(kind, bare / "bin" / "python", environ, display, time.monotonic).run(bare, None)


async def test_two_at_once(places: Places, kind: Kind, offline: dict[str, str]) -> None:
    made = environments(places, offline)
    version = ".".join(map(str, sys.version_info[:2]))
    with (
        hold(places.environments / f"{made.folder(kind, version).name}.lock", "x"),
        pytest.raises(AlreadyRunning, match="Another loragate"),
    ):
        await made.ensure(kind)


async def test_too_little_disk(places: Places, kind: Kind, offline: dict[str, str]) -> None:
    with pytest.raises(StorageFull, match=r"needs 1000000000 GB of disk .* --data-dir"):
        await environments(places, offline).ensure(replace(kind, need_bytes=10**18))


async def test_an_environment_of_the_users_own(
    places: Places, kind: Kind, offline: dict[str, str], engine_python: Path
) -> None:
    environ = {**offline, "LORAGATE_ENGINE_PYTHON": str(engine_python)}
    assert await environments(places, environ).ensure(kind) == engine_python


@pytest.mark.parametrize(
    ("python", "says"), [("/nowhere/python", "cannot be run"), ("/bin/false", "does not have lgsecond")]
)
async def test_a_users_own_environment_that_is_none(
    places: Places, kind: Kind, offline: dict[str, str], python: str, says: str
) -> None:
    with pytest.raises(CannotStart, match=says):
        await environments(places, {**offline, "LORAGATE_ENGINE_PYTHON": python}).ensure(kind)


async def test_a_platform_without_wheels_is_told_before_anything_is_made(
    places: Places, kind: Kind, offline: dict[str, str]
) -> None:
    mac = replace(hardware.look(offline), system="Darwin")
    display = Display(io.StringIO(), clock=time.monotonic)
    with pytest.raises(PlatformUnsupported, match="macOS"):
        await Environments(places, mac, offline, display, time.monotonic).ensure(kind)
    assert list(places.environments.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            StorageFull,
            "disk filled",
        ),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'", PackagesMissing, "does not reach"),
        ("ERROR: something odd at https://user:secret@host/simple", CannotStart, r"\*\*\*@host"),
        ("", CannotStart, "could not be installed"),
    ],
)
def test_what_pip_failed_of_is_said_in_a_sentence(line: str, error: type[ServiceError], says: str) -> None:
    failure = pip.failure(Outcome(1, (line,) if line else ()), "vLLM")
    assert type(failure) is error
    assert re.search(says, failure.message)
    assert "secret" not in failure.message


def test_the_digest_follows_pins_python_and_processor_but_not_comments(kind: Kind) -> None:
    digest = kind.digest("3.11", "x86_64")
    kind.pins.write_text("# other words\n" + kind.pins.read_text())
    assert kind.digest("3.11", "x86_64") == digest
    assert len({digest, kind.digest("3.12", "x86_64"), kind.digest("3.11", "aarch64")}) == 3
    kind.pins.write_text(kind.pins.read_text().replace("lgsecond==1.0", "lgsecond==1.1"))
    assert kind.digest("3.11", "x86_64") != digest


@pytest.mark.parametrize("name", ["engine-cpu", "engine-cuda", "training"])
def test_the_shipped_pins_are_complete_and_name_no_index(name: str) -> None:
    kind = kinds()[name]
    lines = kind.requirements()
    assert len(lines) > 100
    assert [line for line in lines if "==" not in line or "://" in line or line.startswith("-")] == []
    if kind.first:
        assert sum(line.startswith(f"{kind.first}==") for line in lines) == 1


def test_the_cpu_engine_leaves_out_what_breaks_beside_a_cpu_torch() -> None:
    names = {line.split("==")[0] for line in kinds()["engine-cpu"].requirements()}
    assert names & {"torchvision", "torchaudio", "torchcodec"} == set()
    assert "torch==2.13.0+cpu" in kinds()["engine-cpu"].requirements()
