"""What each public name may answer with, and since when: kept beside the operator's commands, never asked of a gateway.

While a command is under way both the old and the new are right; once it has returned, only the new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Truth:
    """Versions are their numbers (1, 2), times those of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, list[tuple[float, frozenset[int]]]] = {}

    def is_now(self, name: str, *versions: int) -> None:
        self._states.setdefault(name, []).append((self._clock(), frozenset(versions)))

    @contextmanager
    def changing(self, name: str, *versions: int) -> Iterator[None]:
        """Around a command after which `name` answers with `versions`."""
        self.is_now(name, *self._states[name][-1][1], *versions)
        yield
        self.is_now(name, *versions)

    def allowed(self, name: str, began: float, admitted: float) -> frozenset[int]:
        """All that were right at some moment from `began` (the request was sent) to `admitted` (it surely was in)."""
        states = self._states[name]
        ends = [start for start, _ in states[1:]] + [float("inf")]
        return frozenset[int]().union(
            *(
                versions
                for (start, versions), end in zip(states, ends, strict=True)
                if start <= admitted and end > began
            )
        )
