"""Two real engines with four slots each, 24 adapters, versions that change and an engine that is killed: the figures.

The fleet's test with more time; what it asserts, this prints. Knows nothing of peers.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.peers import Place
from gateway.local import hardware
from gateway.local.platforms import engine_kind
from tests.e2e import fleet_adapters
from tests.e2e.fleet_soak import Soak, soak
from tests.e2e.fleet_traffic import BASE, Answered


def fleet(place: Place, *, seconds: float, callers: int) -> dict[str, Any]:
    """Run it in the environments that the tests use, made now where they are missing; what happened."""
    from tests.e2e.conftest import environment  # pytest is only needed here

    engine, training = environment(engine_kind(hardware.look(os.environ))), environment("training")
    made = fleet_adapters.build(training, place.cache)
    found = asyncio.run(soak(engine, made, place.scratch, seconds=seconds, callers=callers, say=_say))
    return {"adapters": len(fleet_adapters.names()), "callers": callers, "text": report(found)}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def within(metrics: dict[str, float], name: str, share: float) -> float:
    """Upper bound of the histogram's bucket that holds `share` of what it counted, in its own unit."""
    prefix = f'{name}_bucket{{le="'
    buckets = [(float(key[len(prefix) : -2]), count) for key, count in metrics.items() if key.startswith(prefix)]
    total = metrics.get(f"{name}_count", 0)
    return min((bound for bound, count in buckets if total and count >= total * share), default=0.0)


def total(metrics: dict[str, float], name: str) -> float:
    return sum(value for key, value in metrics.items() if key == name or key.startswith(name + "{"))


def report(soak: Soak) -> str:
    """What happened, a line for each figure."""
    answers, metrics = soak.ledger.answers, soak.metrics
    good = [each for each in answers if not each.error]
    loads, load_s = (total(metrics, f"loragate_adapter_load_seconds_{part}") for part in ("count", "sum"))
    half = within(metrics, "loragate_adapter_load_seconds", 0.5)
    misses = total(metrics, "loragate_adapter_misses_total")
    adapted = [each for each in answers if each.asked.name != BASE]
    lines = [
        f"traffic              {soak.seconds:.0f} s, {len(answers)} requests ({len(answers) / soak.seconds:.1f}/s)",
        f"wrong answers        {len(soak.ledger.wrong)}",
        f"failed               {len(soak.failed)}, and {len(soak.cut)} under way when the engine was killed",
        f"latency              {_spread([each.ended - each.began for each in good])}",
        f"swap                 {_spread(soak.swaps)} ({len(soak.swaps)} promotes and rollbacks under traffic)",
        f"commands refused     {len(soak.refused)}",
        f"canary               {soak.canary_share:.0%} of the users, {len(soak.canary_mixed)} saw both versions"
        + ("" if soak.canary_stood else "; it was ENDED by the gateway"),
        f"killed engine        ready again after {soak.engine_back:.1f} s, routed to {soak.gateway_back:.1f} s later",
        f"adapter loads        {loads:.0f}, p50 <= {half * 1000:.0f} ms, mean {load_s / max(loads, 1) * 1000:.0f} ms",
        f"evictions            {total(metrics, 'loragate_adapter_evictions_total'):.0f}",
        f"hit ratio            {1 - misses / max(len(adapted), 1):.1%} ({misses:.0f} requests waited for a load)",
    ]
    return "\n".join([*lines, *_what_was_wrong(soak)])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    return (
        f"p50 {statistics.median(values) * 1000:.0f} ms, p99 {percentile(values, 0.99) * 1000:.0f} ms, "
        f"max {max(values) * 1000:.0f} ms"
    )


def _what_was_wrong(soak: Soak) -> list[str]:
    began = soak.ledger.answers[0].began if soak.ledger.answers else 0.0

    def shown(each: Answered) -> str:
        asked, kind = each.asked, "chat" if each.asked.chat else "completion"
        at = f"{each.began - began:.2f}-{each.ended - began:.2f} s"
        return f"{at} {asked.name} v{asked.version} {kind} stream={asked.stream} by={each.answered_by!r} {each.text!r}"

    lines = [f"wrong: {reason}: {shown(each)}" for reason, each in soak.ledger.wrong[:20]]
    lines += [f"failed: {each.error}: {shown(each)}" for each in soak.failed[:20]]
    lines += [f"refused: {each}" for each in soak.refused[:10]]
    kinds = Counter(each.error[:120] for each in soak.ledger.failed)
    lines += [f"kinds: {count} x {kind}" for kind, count in kinds.most_common(8)]
    return [*lines, f"killed at {soak.killed_at - began:.2f}-{soak.died_at - began:.2f} s"] if lines else []
