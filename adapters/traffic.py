"""What this room may ask about the use of adapters: which are idle at an engine, and where each one belongs.

The answers come from the data plane, which counts what is in flight; this room never sees a request.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from adapters.placement import rendezvous

ANY = "*"  # stands for every engine name; none is like it


class Traffic(Protocol):
    """What the data plane knows of the use of adapters."""

    def idle(self, url: str, names: Collection[str]) -> Sequence[str]:
        """Those of `names` (resident at `url`) that nothing in flight uses, the first to be put out first."""

    def waits(self, url: str) -> None:
        """Somebody waits for room at `url`, and should be told of every adapter that becomes idle there."""

    def starving(self, url: str) -> None:
        """They have waited long: one of the adapters that are busy at `url` should run dry."""

    def fed(self, url: str) -> None:
        """They have got it, or gave up."""

    def in_use(self, engine_name: str) -> bool:
        """Whether a request that was admitted may still want these weights."""

    def runs(self, url: str, engine_name: str) -> bool:
        """Whether a request runs on these weights at `url` now."""

    def using(self) -> frozenset[str]:
        """All engine names that admitted requests use or wait for; ANY among them where some wait for unknown ones."""

    def homes(self, engine_name: str, urls: Sequence[str]) -> Sequence[str]:
        """All `urls`, in the order in which they should hold it."""


class NoTraffic:
    """Nothing is in flight, and nothing ever was."""

    def idle(self, url: str, names: Collection[str]) -> Sequence[str]:
        return sorted(names)

    def waits(self, url: str) -> None:
        return None

    def starving(self, url: str) -> None:
        return None

    def fed(self, url: str) -> None:
        return None

    def in_use(self, engine_name: str) -> bool:
        return False

    def runs(self, url: str, engine_name: str) -> bool:
        return False

    def using(self) -> frozenset[str]:
        return frozenset()

    def homes(self, engine_name: str, urls: Sequence[str]) -> Sequence[str]:
        return rendezvous(engine_name, urls)
