"""What more or fewer slots would do, said before users feel it: pure arithmetic over what was asked for.

Must not know where the figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GOOD = 0.98  # share of requests that find their adapter; below it the operator is told
ENOUGH = 50  # requests before anything is said


@dataclass(frozen=True, slots=True)
class Advice:
    """Slots against the working set, and one or two sentences for a person."""

    slots: int  # adapters that all ready engines hold together
    per_engine: int | None  # of the smallest; None: no engine says
    working_set: int  # adapters asked for in the window
    hit_ratio: float | None  # share of requests that found their adapter loaded; None: too few to say
    max_loras: int | None  # what would hold the working set; None: what there is does
    expected_hit_ratio: float | None  # with that
    memory_bytes: int | None  # what that takes of each engine's memory; None: the base's shapes are not known
    text: str


def advise(
    rates: Sequence[float],
    *,
    working_set: int,
    requests: int,
    misses: int,
    load_s: float | None,
    per_engine: Sequence[int],
    slot_bytes: int | None,
) -> Advice:
    """rates: requests a second per adapter, any order; misses: of `requests`, that waited for a load of `load_s`.

    per_engine: adapters that each ready engine holds. slot_bytes: memory of one slot.
    """
    slots = sum(per_engine)
    least = min(per_engine) if per_engine else None
    hits = max(0.0, 1.0 - misses / requests) if requests >= ENOUGH else None
    enough = working_set <= slots or least is None
    if enough or hits is None or hits >= GOOD:
        return Advice(slots, least, working_set, hits, None, None, None, _fine(working_set, slots, hits, least))
    needed = -(-working_set // len(per_engine))
    expected = _covered(rates, needed * len(per_engine))
    memory = slot_bytes * (needed - (least or 0)) if slot_bytes is not None else None
    wait = f" for a load of {load_s:.2g} s" if load_s is not None else ""
    cost = f", which takes about {memory / 2**20:,.0f} MiB more of each engine's memory" if memory is not None else ""
    said = (
        f"{working_set} adapters are in use and {slots} fit: {1 - hits:.0%} of requests wait{wait}. "
        f"Start the engines with --max-loras {needed}{cost}: then about {expected:.0%} would find theirs."
    )
    return Advice(slots, least, working_set, hits, needed, expected, memory, said)


def _fine(working_set: int, slots: int, hits: float | None, least: int | None) -> str:
    if least is None:
        return "No engine is ready."
    if hits is None:
        return "Too few requests for adapters to say anything."
    if working_set <= slots:
        return f"{working_set} adapters are in use and {slots} fit."
    return f"{working_set} adapters are in use and {slots} fit; {hits:.1%} of requests find theirs loaded."


def _covered(rates: Sequence[float], places: int) -> float:
    """Share of requests that go to the `places` busiest adapters: what a good order of eviction comes near to."""
    total = sum(rates)
    return sum(sorted(rates, reverse=True)[:places]) / total if total else 1.0
