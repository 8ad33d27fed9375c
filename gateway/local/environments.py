"""Managed environments: `<data>/environments/<kind>-<digest>`, made on first use, complete or not there at all.

An environment is never moved (its scripts carry their own path), so a stamp written last is what makes it count, and
one without a stamp is removed at the next start. The project itself is never installed into one.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.local import pip
from gateway.local.display import Display
from gateway.local.errors import CannotStart, PlatformUnsupported
from gateway.local.filling import Filling
from gateway.local.hardware import Hardware
from gateway.local.locks import hold
from gateway.local.pins import Kind
from gateway.local.places import Places, need_space
from gateway.local.platforms import need_platform, suitable_python
from gateway.local.process import run
from gateway.local.timings import Timings

STAMP = "complete"


@dataclass(frozen=True, slots=True)
class Environments:
    """The environments of one data directory."""

    places: Places
    hardware: Hardware
    environ: Mapping[str, str]
    display: Display
    clock: Callable[[], float]

    async def ensure(self, kind: Kind) -> Path:
        """The interpreter of a working environment of `kind`, made now if need be.

        CannotStart and its kin, or StorageFull, with a sentence that says what to do.
        """
        own = self.environ.get(kind.variable)
        if own:
            return await self._own(Path(own), kind)
        need_platform(self.hardware)
        base = suitable_python(self.environ)
        folder = self.folder(kind, base.version)
        if await self._works(folder):
            return python_of(folder)
        with hold(
            self.places.environments / f"{folder.name}.lock",
            f"Another loragate (process {{pid}}) is making the environment for {kind.title}. "
            "Wait until it is done, then start again.",
        ):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # half-made by a start that was killed
            need_space(self.places.environments, kind.need_bytes, f"The environment for {kind.title}")
            await self._make(kind, folder, base.path)
        return python_of(folder)

    def folder(self, kind: Kind, version: str) -> Path:
        """Where an environment of `kind` for Python `version` (`3.11`) lies, there or not."""
        return self.places.environments / f"{kind.name}-{kind.digest(version, self.hardware.machine)}"

    def existing(self, kind: Kind) -> Path | None:
        """The interpreter that `ensure` would use without making anything; None when it would have to."""
        own = self.environ.get(kind.variable)
        if own:
            return Path(own)
        try:
            base = suitable_python(self.environ)
        except PlatformUnsupported:
            return None
        folder = self.folder(kind, base.version)
        return python_of(folder) if (folder / STAMP).is_file() else None

    async def _own(self, python: Path, kind: Kind) -> Path:
        code = f"import importlib.util as u, sys; sys.exit(0 if u.find_spec({kind.imports[0]!r}) else 3)"
        try:
            outcome = await run([str(python), "-c", code], env=pip.child_environ(self.environ))
        except OSError as exc:
            raise CannotStart(
                f"{kind.variable} names {python}, which cannot be run: {exc.strerror}. Name a Python."
            ) from None
        if outcome.code != 0:
            raise CannotStart(
                f"{kind.variable} names {python}, which does not have {kind.imports[0]}. Install it there, or unset "
                "the variable to let loragate make an environment."
            )
        return python

    async def _works(self, folder: Path) -> bool:
        if not (folder / STAMP).is_file():
            return False
        try:
            return (await run([str(python_of(folder)), "-c", "pass"], env=pip.child_environ(self.environ))).code == 0
        except OSError:  # the interpreter that it was made from is gone
            return False

    async def _make(self, kind: Kind, folder: Path, base: Path) -> None:
        timings = Timings(self.places.timings)
        began = self.clock()
        try:
            await self._venv(kind, folder, base)
            filling = Filling(kind, python_of(folder), self.environ, self.display, self.clock)
            await filling.run(folder, timings.last(kind.name))
        except BaseException:  # a cancelled or failed build leaves nothing behind; it is raised on
            self.display.end("not finished")
            self.display.show("Removing what was made so far")  # gigabytes: half a minute on a busy disk
            shutil.rmtree(folder, ignore_errors=True)
            self.display.end()
            raise
        seconds = self.clock() - began
        stamp = {"kind": kind.name, "seconds": round(seconds, 1), "python": str(base)}
        (folder / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        timings.keep(kind.name, seconds)
        self.display.end("done")

    async def _venv(self, kind: Kind, folder: Path, base: Path) -> None:
        self.display.show(f"Installing {kind.title}", "making its environment")
        outcome = await run([str(base), "-m", "venv", str(folder)], env=pip.child_environ(self.environ))
        if outcome.code != 0:
            advice = (
                "install the system's package for it (python3-venv on Debian and Ubuntu)"
                if "ensurepip" in (outcome.text)
                else "correct that"
            )
            last = outcome.lines[-1][:200] if outcome.lines else "no output"
            raise CannotStart(f"`{base} -m venv` failed: {last} Please {advice}, then start again.")


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"
