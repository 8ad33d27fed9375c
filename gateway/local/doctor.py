"""`loragate doctor`: what is on this machine, each thing ok, a warning or a problem, and what to do about it.

Looks and reports; what it does not find it does not make.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from adapters.errors import ServiceError
from gateway.local import hardware, indexes, installed, pidfile, platforms, ports
from gateway.local.errors import CannotStart
from gateway.local.hardware import GIB, Hardware
from gateway.local.pins import kinds
from gateway.local.places import GB, Places, free_bytes
from gateway.settings import Settings

OK, WARNING, PROBLEM = "ok", "warning", "problem"
SQLITE_FIXED = (3, 51, 3)  # earlier ones can, very seldom, lose a WAL that is reset while it is being read
MEMORY_MIN = 4 * GIB  # the CPU engine takes about 2 GB with the demo


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `blocks`: with this, `loragate up` does not work (with --engine it may)."""

    name: str
    state: str
    found: str
    advice: str = ""
    blocks: bool = False


def examine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Check]:
    """Every check, one after the other: about ten seconds, most of them imports in the environments."""
    machine = hardware.look(environ)
    own = bool(environ.get("LORAGATE_ENGINE_PYTHON"))
    yield _python(environ)
    yield _system(machine, own)
    yield _memory(machine)
    yield from _gpu(machine, own)
    yield _numa(machine)
    yield from _data(settings)
    yield _sqlite()
    yield from _running(settings)
    for kind in kinds().values():
        yield from (Check(*line) for line in installed.examine(kind, Places(settings.data_dir), machine, environ))
    for line in installed.left_over(kinds().values(), Places(settings.data_dir), machine, environ):
        yield Check(*line)
    yield from _indexes(environ)


def document(checks: list[Check]) -> dict[str, Any]:
    """The report as one JSON document."""
    return {"ok": not any(check.blocks for check in checks), "data": [asdict(check) for check in checks]}


def _tried(name: str, look: Callable[[], str], *, blocks: bool = True) -> Check:
    """`look` returns what was found, or raises the very sentence that `up` would end with."""
    try:
        return Check(name, OK, look())
    except ServiceError as exc:
        found, _, advice = exc.message.partition(". ")
        return Check(name, PROBLEM, found, advice, blocks)


def _python(environ: Mapping[str, str]) -> Check:
    def look() -> str:
        chosen = platforms.suitable_python(environ)
        return f"{platform.python_version()} at {sys.executable}, environments from {chosen.version}"

    return _tried("python", look)


def _system(machine: Hardware, own: bool) -> Check:
    libc = f"glibc {machine.glibc[0]}.{machine.glibc[1]}" if machine.glibc else "no glibc"
    flags = ", ".join(machine.flags)
    shown = f"{machine.system} {machine.machine}, {libc}, {machine.cpus} processors" + (f" ({flags})" if flags else "")

    def look() -> str:
        if not own:
            platforms.need_platform(machine)
        return shown

    return _tried("platform", look)


def _memory(machine: Hardware) -> Check:
    shown = f"{machine.memory / GIB:.1f} GiB"
    if machine.memory >= MEMORY_MIN:
        return Check("memory", OK, shown)
    return Check("memory", WARNING, shown, "The engine with the demo takes about 2 GB: close other programs.")


def _gpu(machine: Hardware, own: bool) -> Iterator[Check]:
    if not machine.gpus:
        yield Check("gpu", OK, "none found: the engine's CPU build is used")
        return
    names = ", ".join(f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in machine.gpus)
    yield Check("gpu", OK, names)

    def look() -> str:
        if not own:
            platforms.engine_kind(machine)
        return machine.gpus[0].driver

    yield _tried("driver", look)


def _numa(machine: Hardware) -> Check:
    if machine.numa:
        return Check("libnuma", OK, "found")
    if machine.gpus:
        return Check("libnuma", OK, "not found, only the CPU engine needs it")
    advice = "Install it: apt install libnuma1, dnf install numactl-libs."
    return Check("libnuma", PROBLEM, "not found, and the CPU engine links to it", advice, blocks=True)


def _data(settings: Settings) -> Iterator[Check]:
    places = Places(settings.data_dir)

    def look() -> str:
        if places.data.exists():
            places.prepare()
            return f"{places.data} can be written"
        parent = next(folder for folder in places.data.parents if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise CannotStart(f"{places.data} cannot be made: {parent} is not writable. Name another with --data-dir.")
        return f"{places.data} is made at the first start"

    yield _tried("data directory", look)
    free = free_bytes(places.data)
    if free >= kinds()["engine-cpu"].need_bytes:
        yield Check("disk", OK, f"{free / GB:.0f} GB free at {places.data}")
    else:
        yield Check(
            "disk",
            WARNING,
            f"{free / GB:.1f} GB free at {places.data}",
            "The CPU engine's environment takes 4 GB, once.",
        )


def _sqlite() -> Check:
    if sqlite3.sqlite_version_info >= SQLITE_FIXED:
        return Check("sqlite", OK, sqlite3.sqlite_version)
    return Check(
        "sqlite",
        WARNING,
        f"{sqlite3.sqlite_version}, older than 3.51.3 and its fix of a rare fault of the write-ahead log",
        "Keep backups, use a Python that brings a newer SQLite, or PostgreSQL (database_url).",
    )


def _running(settings: Settings) -> Iterator[Check]:
    """The gateway of this data directory explains its own ports; otherwise they must be free."""
    url = _written(settings)
    if url is not None and _answers(url):
        yield Check("gateway", OK, f"running, {url} answers")
        return
    yield Check("gateway", OK, "not running")
    for name, host, port, flag in (
        ("port", settings.public.host, settings.public.port, "--port"),
        ("admin port", settings.admin.host, settings.admin.port, "--admin-port"),
    ):
        yield _tried(name, _free(host, port, flag))
    orphan = pidfile.read(Places(settings.data_dir).engine_pid)
    if orphan is not None:
        found = f"an earlier run may have left process {orphan.pid} behind"
        yield Check("engine", WARNING, found, "The next `loragate up` ends it.")


def _answers(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/livez", timeout=2.0, trust_env=False)
        return answer.status_code == 200 and answer.json().get("alive") is True
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):
        return False


def _written(settings: Settings) -> str | None:
    """Where a running gateway says that its admin port is: it may have been started with another one."""
    try:
        return (settings.data_dir / "admin.url").read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _free(host: str, port: int, flag: str) -> Callable[[], str]:
    def look() -> str:
        ports.need_free(host, port, flag)
        return f"{host}:{port} is free"

    return look


def _indexes(environ: Mapping[str, str]) -> Iterator[Check]:
    found = indexes.check(environ)
    if not found:
        yield Check("index", WARNING, "pip cannot be asked for its indexes", "Is pip installed in this environment?")
    for index in found:
        if index.problem:
            advice = "Check the network, the proxy and pip's configuration (pip config list)."
            yield Check("index", WARNING, f"{index.shown}: {index.problem}", advice)
        else:
            yield Check("index", OK, f"{index.shown} answers")
