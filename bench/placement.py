"""Placement in a large fleet: ours beside what other routers do, on the same simulated requests.

Knows the simulation and the policies; what it costs in the real code is placement_code's.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.figures import Sample
from bench.placement_code import costs
from bench.placement_fleet import Fleet, Shape, percentile
from bench.placement_policies import POLICIES

SKEWS = (1.0, 0.8)
AFTER_S = 50.0  # in which loads count as those of a loss


@dataclass(frozen=True, slots=True)
class Placement:
    """Raw figures: skew → policy → figures of the simulation, and CPU times of the real code."""

    shape: dict[str, Any]
    samples: dict[str, dict[str, Sample]]
    costs: dict[str, list[float]]


def shape_of(adapters: int, quick: bool) -> Shape:
    if quick:
        return Shape(adapters=min(adapters, 500), replicas=8, rate=32.0, warm_s=10.0, seconds=70.0)
    return Shape(adapters=adapters)


def placement(shape: Shape, scratch: Path) -> Placement:
    """Each policy without and, at the first skew, with losses of a replica; then the code's CPU at that size."""
    losses = tuple(shape.warm_s + 10 + 60 * number for number in range(int(shape.seconds // 60)))
    samples: dict[str, dict[str, Sample]] = {}
    for skew in SKEWS:
        for name in POLICIES:
            fleet = run(replace(shape, skew=skew), name)
            samples.setdefault(f"{skew:g}", {})[name] = sample = figures(fleet)
            if skew == SKEWS[0]:
                sample["loss_loads"] = lost(fleet, run(replace(shape, skew=skew, losses=losses), name), losses)
            print(f"  skew {skew:g}, {name}: {sample['hit']:.1%} hits", file=sys.stderr)
    return Placement(asdict(shape), samples, costs(shape, scratch))


def run(shape: Shape, policy: str) -> Fleet:
    fleet = Fleet(shape, POLICIES[policy]())
    fleet.run()
    return fleet


def figures(fleet: Fleet) -> Sample:
    """Share of hits, loads per second, busiest replica ÷ mean (mean over windows), seconds of delay."""
    return {
        "hit": fleet.hits / fleet.asked,
        "loads": fleet.loads / fleet.shape.seconds,
        "worst": statistics.fmean(fleet.worst),
        "delay_p50": percentile(fleet.delays, 0.5),
        "delay_p99": percentile(fleet.delays, 0.99),
    }


def lost(whole: Fleet, broken: Fleet, losses: tuple[float, ...]) -> float:
    """Loads more than without the loss in the AFTER_S after it, mean of all losses."""

    def after(fleet: Fleet) -> int:
        return sum(at <= load < at + AFTER_S for load in fleet.loads_at for at in losses)

    return (after(broken) - after(whole)) / max(len(losses), 1)
