"""What is in a managed environment and whether it imports: asked in a child of that environment, for doctor."""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from adapters.errors import ServiceError
from gateway.local.display import Display
from gateway.local.environments import Environments
from gateway.local.hardware import Hardware
from gateway.local.pins import Kind
from gateway.local.pip import child_environ
from gateway.local.places import GB, Places
from gateway.local.platforms import engine_kind, need_platform, suitable_python

IMPORT_TIMEOUT_S = 120.0  # torch from a cold disk

_ASK = """
import importlib, importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        names = m.packages_distributions().get(name, [name])
        found[name] = [m.version(names[0]), ""]
    except BaseException as exc:
        found[name] = ["", type(exc).__name__ + ": " + str(exc)[:200]]
print(json.dumps(found))
"""

Line = tuple[str, str, str, str, bool]  # the fields of doctor's Check


def examine(kind: Kind, places: Places, machine: Hardware, environ: Mapping[str, str]) -> Iterator[Line]:
    """One line per environment that is here, or that `up` would make; with each package that does not import."""
    name = f"environment {kind.name}"
    environments = _looked_at(places, machine, environ)
    if kind.name == ("engine-cpu" if machine.gpus else "engine-cuda"):
        yield name, "ok", "not needed on this machine", "", False
        return
    python = environments.existing(kind)
    if python is None:
        when = "made by the first `loragate up`" if kind.name == _needed(machine) else "not needed now"
        yield name, "ok", f"not made yet, {when}", "", False
        return
    own = f", named by {kind.variable}" if environ.get(kind.variable) else ""
    answers = imports(python, kind.imports, environ)
    shown = ", ".join(f"{package} {version}" for package, (version, error) in answers.items() if not error)
    broken = [f"{package} does not import ({error})" for package, (_, error) in answers.items() if error]
    if not broken:
        yield name, "ok", f"{shown}{own}", "", False
        return
    advice = "Install what is missing there." if own else f"Remove {python.parent.parent}; it is made again."
    yield name, "problem", "; ".join(broken), advice, kind.name == _needed(machine)


def left_over(kinds: Iterable[Kind], places: Places, machine: Hardware, environ: Mapping[str, str]) -> Iterator[Line]:
    """One line per environment made for other pins or another Python, which no start of this version uses."""
    environments = _looked_at(places, machine, environ)
    try:
        version = suitable_python(environ).version
    except ServiceError:
        return
    used = {environments.folder(kind, version) for kind in kinds}
    for folder in sorted(places.environments.glob("*/")):
        if folder not in used:
            size = sum(entry.lstat().st_size for entry in folder.rglob("*")) / GB
            found = f"{size:.1f} GB that this version does not use"
            advice = f"Remove {folder}, unless another version of loragate uses this data directory."
            yield f"environment {folder.name}", "warning", found, advice, False


def _looked_at(places: Places, machine: Hardware, environ: Mapping[str, str]) -> Environments:
    """Nothing is made, so nothing is shown."""
    return Environments(places, machine, environ, Display(io.StringIO(), clock=time.monotonic), time.monotonic)


def imports(python: Path, names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Version and error of each module, imported by `python` in a child."""
    argv = [str(python), "-c", _ASK, *names]
    try:
        answer = subprocess.run(
            argv, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False, env=child_environ(environ)
        )
        found = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as exc:
        return {name: ("", f"{python} cannot be asked: {type(exc).__name__}") for name in names}
    return {name: (str(version), str(error)) for name, (version, error) in found.items()}


def _needed(machine: Hardware) -> str | None:
    try:
        need_platform(machine)
        return engine_kind(machine)
    except ServiceError:
        return None
