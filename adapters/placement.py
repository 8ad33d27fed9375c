"""Which replicas should hold which adapters: rendezvous hashing, more copies for what is asked for more, few moves.

Pure: names, numbers and URLs in, a plan out; no clock, no I/O. Must not know what is loaded nor who asks.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

# Found with `python -m bench placement`; anything between half and twice of either does nearly as well.
KEPT = 2.0  # what is there already counts this much more than what would replace it
HEAVY = 0.5  # of an average replica's load: a copy that carries more is split even when names go without a home
OVERLOADED = 1.25  # times the mean of outstanding requests: where a copy is worth a load at once
NEAR = 8  # replicas, first in a name's order, among which the least busy one is as good as the first
ODD = 0x9E3779B97F4A7C15  # 2**64 ÷ the golden ratio: spreads every bit of a factor over the upper ones


@dataclass(frozen=True, slots=True)
class Plan:
    """Engine name → URLs that should hold it, best first. A name without a home is loaded where it is asked for."""

    homes: Mapping[str, tuple[str, ...]]


EMPTY = Plan({})


def rendezvous(name: str, urls: Iterable[str]) -> tuple[str, ...]:
    """All `urls`, best first for `name`: the same in every process, whatever the order they are given in.

    Remembered per name and membership, so give `urls` in the same order each time.
    """
    return _ranked(name, urls if isinstance(urls, tuple) else tuple(urls))


@functools.lru_cache(maxsize=16_384)
def _ranked(name: str, urls: tuple[str, ...]) -> tuple[str, ...]:
    """One digest each and a product per pair: as even as a digest per pair at a fifth of its time."""
    own = _digest(name)
    return tuple(url for _, url in sorted(((own ^ _digest(url)) * ODD % 2**64, url) for url in urls))


@functools.lru_cache(maxsize=16_384)
def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def home(plan: Plan, name: str, urls: Collection[str]) -> tuple[str, ...]:
    """All `urls` in the order in which to try them for `name`: its homes first, the rest by rendezvous."""
    ranked = rendezvous(name, urls)
    first = [url for url in plan.homes.get(name, ()) if url in urls]
    return (*first, *(url for url in ranked if url not in first)) if first else ranked


def relief(
    plan: Plan,
    outstanding: Mapping[str, int],
    busy: Mapping[str, Mapping[str, int]],
    resident: Mapping[str, Collection[str]],
) -> list[tuple[str, str]]:
    """(name, URL) to load now, at most one for each replica that has far more to do than the rest: its busiest name.

    For demand that `place` does not know of yet, unless a calm replica has it already; whether there is room is not
    asked. All by URL; busy: name → requests in flight there.
    """
    mean, urls, found = sum(outstanding.values()) / max(len(outstanding), 1), tuple(outstanding), []
    for url, count in outstanding.items():
        if count > OVERLOADED * mean + 1 and busy.get(url):
            name = max(busy[url], key=lambda name: (busy[url][name], name))
            calm = {other for other in urls if outstanding[other] < mean}
            near = [other for other in home(plan, name, urls) if name not in resident.get(other, ())][:NEAR]
            if calm.intersection(near) and not any(name in resident.get(other, ()) for other in calm):
                found.append((name, min(near, key=outstanding.__getitem__)))
    return found


def place(
    demand: Mapping[str, float], slots: Mapping[str, int], pinned: Collection[str] = (), before: Plan = EMPTY
) -> Plan:
    """Homes for the names in `demand` (requests per second or in flight; 0: wanted but idle), near to `before`'s.

    slots: URL → names it may hold beside the pinned ones, which are everywhere. With a slot for each name every name
    has a home and the busiest have copies in what is left. With fewer, the least wanted go without, and some more do
    for copies of those that would overload a replica: as many as go without anyway, at most a quarter of the slots.
    """
    urls = tuple(slots)
    plan = {name: rendezvous(name, urls) for name in pinned}
    wanted = {name: rate for name, rate in demand.items() if name not in plan} if plan else demand
    room = {url: min(count, len(wanted)) for url, count in slots.items() if count > 0}
    if not wanted or not room:
        return Plan(plan)
    if all(room.get(url) == len(wanted) for url in urls):
        return Plan(plan | {name: rendezvous(name, urls) for name in wanted})
    had = {
        name: kept
        for name, homes in before.homes.items()
        if name in wanted and (kept := [url for url in homes if url in room])
    }
    total = sum(room.values())
    names = _chosen(wanted, had, total)
    spare = max(total - len(wanted), min(total // 4, len(wanted) - total))
    heavy = 0.0 if total >= len(wanted) else HEAVY * sum(map(wanted.__getitem__, names)) / len(room)
    copies = _copies(names, wanted, had, len(room), spare, heavy)
    names = names[: total - sum(copies.values()) + len(copies)]  # the last ones make way for the copies
    known = {url for homes in before.homes.values() for url in homes}
    joined = room.keys() - known if known else set()
    return Plan(plan | _assigned(names, copies, had, room, joined))


def _chosen(demand: Mapping[str, float], had: Mapping[str, Sequence[str]], total: int) -> list[str]:
    """The `total` names most worth a home, best first; only those near enough to the limit are looked at one by one."""
    names: Iterable[str] = demand
    if len(demand) > total:
        limit = sorted(demand.values(), reverse=True)[total - 1] / KEPT
        names = [name for name, rate in demand.items() if rate >= limit]
    worth = [(-demand[name] * KEPT, 0, name) if name in had else (-demand[name], 1, name) for name in names]
    worth.sort()
    return [name for _, _, name in worth[:total]]


def _copies(
    names: Sequence[str],
    demand: Mapping[str, float],
    had: Mapping[str, Sequence[str]],
    most: int,
    spare: int,
    heavy: float,
) -> dict[str, int]:
    """Copies of each name: each of `spare` more goes where a copy carries most, if that is more than `heavy`."""

    def carried(name: str, copies: int) -> float:
        return demand[name] / copies * (KEPT if len(had.get(name, ())) > copies else 1.0)

    copies = dict.fromkeys(names, 1)
    heap = [(-load, name) for name in names if (load := carried(name, 1)) > heavy] if most > 1 else []
    heapq.heapify(heap)
    while heap and spare:
        name = heap[0][1]
        spare -= 1
        copies[name] += 1
        if copies[name] < most and (load := carried(name, copies[name])) > heavy:
            heapq.heapreplace(heap, (-load, name))
        else:
            heapq.heappop(heap)
    return copies


def _assigned(
    names: Sequence[str],
    copies: Mapping[str, int],
    had: Mapping[str, Sequence[str]],
    room: dict[str, int],
    joined: Collection[str],
) -> dict[str, tuple[str, ...]]:
    """Homes: those there are, then for what is missing the best replicas with room. Uses `room` up.

    Demand is not looked at, so gateways that count a little differently choose the same (with it they agreed on 55 %).
    Copies and routing balance well enough: sparing loaded replicas took the busiest from 1.22 to 1.19 times the mean.
    """
    urls = tuple(room)
    homes: dict[str, list[str]] = {}
    loose: dict[str, list[str]] = {}  # URL → names there that have more homes than they need
    for name in names:
        homes[name] = kept = [url for url in had.get(name, ()) if room[url]]
        if kept and joined:
            kept += [url for url in rendezvous(name, urls)[: copies[name]] if url in joined and room[url]]
        for url in kept:
            room[url] -= 1
            if len(kept) > copies[name] and url not in joined:
                loose.setdefault(url, []).append(name)
    changed = [name for name in names if len(homes[name]) != copies[name]]
    changed.sort(key=lambda name: (-copies[name].bit_length(), name))  # many copies: while there is room on many
    for name in changed:
        own, missing = homes[name], copies[name] - len(homes[name])
        for url in rendezvous(name, urls) if missing > 0 else ():
            if missing and url not in own and (room[url] or _freed(loose.get(url, ()), url, homes, copies, room)):
                room[url] -= 1
                missing -= 1
                own.append(url)
    for name in changed:
        ranked, spare = rendezvous(name, urls), max(len(homes[name]) - copies[name], 0)
        going = [url for url in reversed(ranked) if url in homes[name] and url not in joined][:spare]
        homes[name] = [url for url in ranked if url in homes[name] and url not in going]
    return {name: tuple(found) for name, found in homes.items() if found}


def _freed(
    loose: Iterable[str], url: str, homes: Mapping[str, list[str]], copies: Mapping[str, int], room: dict[str, int]
) -> bool:
    """Whether one of `loose` could give its home at `url` up."""
    for name in loose:
        if len(homes[name]) > copies[name] and url in homes[name]:
            homes[name].remove(url)
            room[url] += 1
            return True
    return False
