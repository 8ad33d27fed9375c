"""Slots against what is asked for, as operators see it: the figures of `loragate status` and of the metrics.

Must not ask an engine; the base's config.json is read once per base.
"""

from __future__ import annotations

import functools
from typing import Any

from adapters.reconcile import Reconciler
from adapters.served import described
from adapters.types import ReplicaState
from gateway.advice import Advice, Pool, advise
from gateway.demand import WINDOW_S, Demand


class Capacity:
    def __init__(self, demand: Demand, reconciler: Reconciler, max_lora_rank: int) -> None:
        self._demand = demand
        self._reconciler = reconciler
        self._max_lora_rank = max_lora_rank

    def advice(self) -> Advice:
        seen, base = self._demand.seen(), self._reconciler.base
        views = self._reconciler.residency.values()
        ready = [view for view in views if view.state is ReplicaState.READY and view.capacity is not None]
        pinned = frozenset[str]().union(*(view.pinned for view in ready))  # everywhere, whatever is asked for
        return advise(
            [rate for name, rate in seen.rates.items() if name not in pinned],
            working_set=len(seen.asked - pinned),
            requests=seen.requests,
            misses=seen.misses,
            load_s=seen.load_s,
            pool=Pool(
                capacity=[view.capacity or 0 for view in ready],
                held=[len(view.pinned | view.foreign) for view in ready],
                away=len(views) - len(ready),
            ),
            slot_bytes=_slot_bytes(base.root, self._max_lora_rank) if base is not None else None,
        )

    def document(self) -> dict[str, Any]:
        """The part `capacity` of /admin/v1/status."""
        seen, advice = self._demand.seen(), self.advice()
        return {
            "window_s": int(WINDOW_S),
            "slots": advice.slots,
            "slots_per_engine": advice.per_engine,
            "working_set": advice.working_set,
            "requests": seen.requests,
            "hit_ratio": _rounded(advice.hit_ratio),
            "loads": seen.loads,
            "load_seconds": _rounded(seen.load_s),
            "evictions": seen.evictions,
            "advised_max_loras": advice.max_loras,
            "expected_hit_ratio": _rounded(advice.expected_hit_ratio),
            "memory_bytes": advice.memory_bytes,
            "advice": advice.text,
        }

    def failed(self) -> int:
        """Versions that some ready engine could not load, or does not answer with."""
        ready = [view for view in self._reconciler.residency.values() if view.state is ReplicaState.READY]
        return len(frozenset[str]().union(*(view.failed for view in ready)))

    def gauges(self) -> dict[str, float]:
        """Name → value, for a scrape."""
        seen, advice = self._demand.seen(), self.advice()
        return {
            "loragate_adapter_slots": advice.slots,
            "loragate_adapter_working_set": advice.working_set,
            "loragate_adapter_window_requests": seen.requests,
            "loragate_adapter_window_misses": seen.misses,
        }


@functools.lru_cache(maxsize=4)
def _slot_bytes(root: str | None, rank: int) -> int | None:
    shape = described("", root).shape
    return shape.slot_bytes(rank) if shape is not None else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
