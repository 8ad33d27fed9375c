"""Fills a fresh environment with its pins, shown while it goes: the one package with an index of its own first.

Knows pip's outcomes; where the environment lies and when it counts as complete is environments.py's.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.local import pip
from gateway.local.display import Display
from gateway.local.errors import PackagesMissing
from gateway.local.pins import Kind

REDRAW_S = 0.5


@dataclass(frozen=True, slots=True)
class Filling:
    """One installation of `kind`'s pins by `python`, the environment's own interpreter."""

    kind: Kind
    python: Path
    environ: Mapping[str, str]
    display: Display
    clock: Callable[[], float]

    async def run(self, folder: Path, expected_s: float | None) -> None:
        """Install every pin into `folder`'s environment. PackagesMissing, StorageFull or CannotStart."""
        requirements = self.kind.requirements()
        watch = pip.watch(folder)
        drawing = asyncio.create_task(self._draw(watch, len(requirements), expected_s))
        try:
            first = [line for line in requirements if self.kind.first and line.startswith(f"{self.kind.first}==")]
            if first:
                await self._first(first, watch)
            with tempfile.TemporaryDirectory() as scratch:
                rest = Path(scratch) / "pins.txt"
                rest.write_text("\n".join(line for line in requirements if line not in first), encoding="utf-8")
                outcome = await pip.install(self.python, ["-r", str(rest)], environ=self.environ, on_line=watch.line)
            if outcome.code != 0:
                raise pip.failure(outcome, self.kind.title)
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)

    async def _first(self, first: list[str], watch: pip.Watch) -> None:
        """The package with an index of its own: the configured indexes first, then that one as well.

        Alone, so that no other package can come from that index.
        """
        outcome = await pip.install(self.python, first, environ=self.environ, on_line=watch.line)
        if outcome.code != 0 and self.kind.index and pip.missing(outcome):
            watch.collected = 0
            self.display.say(f"The configured indexes do not have {first[0]}; asking {self.kind.index} as well.")
            outcome = await pip.install(
                self.python, first, environ=self.environ, index=self.kind.index, on_line=watch.line
            )
            if outcome.code != 0 and pip.missing(outcome):
                raise PackagesMissing(
                    f"Neither the package indexes that pip is configured with nor {self.kind.index} gave {first[0]}. "
                    "Set PIP_EXTRA_INDEX_URL to an index that has it or PIP_FIND_LINKS to a folder with its wheel, "
                    "then start again."
                )
        if outcome.code != 0:
            raise pip.failure(outcome, self.kind.title)

    async def _draw(self, watch: pip.Watch, total: int, expected_s: float | None) -> None:
        began = self.clock()
        while True:
            installed = watch.installed()
            done = max(watch.collected, installed)
            spent = self.clock() - began
            # Getting and unpacking take about as long as each other; so each package counts twice.
            share = (done + installed) / (2 * max(total - watch.ignored, 1))
            left = expected_s - spent if expected_s else (spent / share - spent if share > 0.1 else None)
            of = f"{total - watch.ignored} packages"
            far = f"unpacking, {installed} of {of}" if watch.installing and installed > 1 else f"{done} of {of}"
            self.display.show(f"Installing {self.kind.title}", far, left, also=f"{watch.bytes / 1e6:.0f} MB")
            await asyncio.sleep(REDRAW_S)
