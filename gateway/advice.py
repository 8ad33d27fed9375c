"""What more or fewer slots would do, said before users feel it: pure arithmetic over what was asked for.

Must not know where the figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GOOD = 0.98  # share of requests that find their adapter; below it the operator is told
ENOUGH = 50  # requests before anything is said


@dataclass(frozen=True, slots=True)
class Pool:
    """The engines, as far as their slots are concerned."""

    capacity: Sequence[int]  # adapters that each ready engine holds
    held: Sequence[int]  # of those, that are pinned there, or not this gateway's
    away: int = 0  # engines that are not ready


@dataclass(frozen=True, slots=True)
class Advice:
    """Slots against the working set, and one or two sentences for a person."""

    slots: int  # adapters that all ready engines hold together, beside pinned ones
    per_engine: int | None  # of the smallest; None: no engine is ready
    working_set: int  # adapters asked for in the window, but pinned ones
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
    pool: Pool,
    slot_bytes: int | None,
) -> Advice:
    """rates: requests a second per adapter that is not pinned, any order.

    misses: of `requests`, that waited for a load of `load_s`. slot_bytes: memory of one slot.
    """
    free = [max(0, capacity - held) for capacity, held in zip(pool.capacity, pool.held, strict=True)]
    slots = sum(free)
    least = min(pool.capacity) if pool.capacity else None
    hits = max(0.0, 1.0 - misses / requests) if requests >= ENOUGH else None
    if working_set <= slots or least is None or hits is None or hits >= GOOD:
        return Advice(slots, least, working_set, hits, None, None, None, _fine(working_set, slots, hits, least))
    engines = len(free) + pool.away
    wait = f" for a load of {load_s:.2g} s" if load_s is not None else ""
    said = f"{_in_use(working_set)} and {slots} fit{_beside(pool)}: {1 - hits:.0%} of requests wait{wait}. "
    if pool.away:
        verb, them = ("is", "it") if pool.away == 1 else ("are", "them")
        said += f"{pool.away} of {engines} engines {verb} not ready: bring {them} back first. "
        if working_set <= slots + pool.away * min(free):
            return Advice(slots, least, working_set, hits, None, None, None, said.strip())
    needed = -(-working_set // engines) + max(pool.held)
    expected = _covered(rates, (needed - max(pool.held)) * engines)
    memory = slot_bytes * max(0, needed - least) if slot_bytes is not None else None
    cost = f", which takes about {memory / 2**20:,.0f} MiB more of each engine's memory" if memory is not None else ""
    said += f"Start the engines with --max-loras {needed}{cost}: then about {expected:.0%} would find theirs."
    return Advice(slots, least, working_set, hits, needed, expected, memory, said)


def _fine(working_set: int, slots: int, hits: float | None, least: int | None) -> str:
    if least is None:
        return "No engine is ready."
    if hits is None:
        return "Too few requests for adapters to say anything."
    if working_set <= slots:
        return f"{_in_use(working_set)} and {slots} fit."
    return f"{_in_use(working_set)} and {slots} fit; {hits:.1%} of requests find theirs loaded."


def _in_use(working_set: int) -> str:
    return "1 adapter is in use" if working_set == 1 else f"{working_set} adapters are in use"


def _beside(pool: Pool) -> str:
    held = max(pool.held)
    return f" beside the {held} on each engine that are pinned or not this gateway's" if held else ""


def _covered(rates: Sequence[float], places: int) -> float:
    """Share of requests that go to the `places` busiest adapters: what a good order of eviction comes near to."""
    total = sum(rates)
    return sum(sorted(rates, reverse=True)[:places]) / total if total else 1.0
