"""Every metric and every label name of the product; one collector turns plain counts into Prometheus text.

The hot path adds to dicts and lists (about 0.1 µs each, where a prometheus-client update costs 1-2 µs); only a
scrape builds metric objects. The `model` label takes the 50 busiest public names, all others share `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

MODEL_LABELS = 50
OTHER = "other"
GONE = "gone"  # replica label of all that have left: addresses come and go for ever

Labels: TypeAlias = tuple[str, ...]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


_CAPACITY = {
    "loragate_adapter_slots": "Adapters that all ready engines hold together.",
    "loragate_adapter_working_set": "Adapters asked for in the last five minutes.",
    "loragate_adapter_window_requests": "Requests for adapters in the last five minutes.",
    "loragate_adapter_window_misses": "Of those, the ones that waited for a load.",
}


class Histogram:
    """Counts per bucket and a sum; `observe` is the hot path's only call."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), running))
        family = HistogramMetricFamily(name, text)
        family.add_metric([], buckets, self.total)
        return family


class ByModel:
    """Counters with a `model` label: counted per exact name, shown for the busiest 50 and `other`.

    A name that has once been shown keeps its label, and what it had counted before stays in `other`:
    so no series ever goes down.
    """

    __slots__ = ("counts", "model_at", "shown")

    def __init__(self, model_at: int) -> None:
        self.counts: dict[Labels, int] = {}
        self.model_at = model_at  # place of the model in the label tuple
        self.shown: dict[Labels, int] = {}  # label tuple → count when its model got its own label

    def add(self, labels: Labels, amount: int = 1) -> None:
        counts = self.counts
        counts[labels] = counts.get(labels, 0) + amount

    def samples(self, named: set[str]) -> Iterator[tuple[Labels, int]]:
        """What a scrape shows; `named` are the models with a label of their own."""
        at = self.model_at
        others: dict[Labels, int] = {}
        for labels, count in self.counts.items():
            folded = (*labels[:at], OTHER, *labels[at + 1 :])
            if labels[at] in named:
                before = self.shown.setdefault(labels, 0)
                if before:
                    others[folded] = others.get(folded, 0) + before
                yield labels, count - before
            else:
                others[folded] = others.get(folded, 0) + count
        yield from others.items()

    def promote(self, model: str) -> None:
        """From now on `model` has its own label; what it counted so far stays in `other`."""
        for labels, count in self.counts.items():
            if labels[self.model_at] == model:
                self.shown[labels] = count


class CanaryCounts:
    """What canaries did. The first 50 names that had one keep a label of their own, all others share `other`."""

    __slots__ = ("_named", "ended", "percent", "requests")

    def __init__(self) -> None:
        self.requests: dict[Labels, int] = {}  # model, arm, outcome
        self.ended: dict[Labels, int] = {}  # reason
        self.percent: dict[str, float] = {}  # public name → percent of callers, of canaries that run
        self._named: set[str] = set()

    def add(self, model: str, arm: str, outcome: str) -> None:
        add(self.requests, self._label(model), arm, outcome)

    def families(self) -> Iterator[Metric]:
        yield _counter(
            "loragate_canary_requests",
            "Requests for names with a canary (outcomes: ok, error, refused, left).",
            ("model", "arm", "outcome"),
            self.requests,
        )
        yield _counter("loragate_canary_ended", "Canaries that this gateway ended.", ("reason",), self.ended)
        share = GaugeMetricFamily("loragate_canary_percent", "Share of callers with the canary.", labels=("model",))
        for model, percent in self.percent.items():
            if self._label(model) != OTHER:
                share.add_metric((model,), percent)
        yield share

    def _label(self, model: str) -> str:
        if model not in self._named:
            if len(self._named) >= MODEL_LABELS:
                return OTHER
            self._named.add(model)
        return model


class Metrics:
    """All counts of one gateway process."""

    def __init__(self) -> None:
        self.requests = ByModel(1)  # route, model, code
        self.tokens = ByModel(0)  # model, kind
        self.request_seconds = Histogram(SECONDS)
        self.time_to_first_token = Histogram(SECONDS)
        self.inter_token = Histogram(TOKEN_SECONDS)
        self.queue_seconds = Histogram(SECONDS)
        self.overhead_seconds = Histogram(OVERHEAD_SECONDS)
        self.adapter_load_seconds = Histogram(SECONDS)
        self.limited: dict[Labels, int] = {}
        self.shed: dict[Labels, int] = {}
        self.stream_terminated: dict[Labels, int] = {}
        self.upstream_errors: dict[Labels, int] = {}
        self.canaries = CanaryCounts()
        self.client_closed = 0
        self.adapter_misses = 0
        self.evictions: Callable[[], Iterable[tuple[str, int]]] = lambda: ()
        self.capacity: Callable[[], Mapping[str, float]] = dict
        self.in_flight: Callable[[], int] = lambda: 0
        self.replica_up: Callable[[], Iterable[tuple[str, bool]]] = lambda: ()
        self.adapters: Callable[[], Mapping[str, int]] = dict
        self._named: set[str] = set()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def forget_replica(self, url: str) -> None:
        """What it counted is from now on shown as that of all that have left."""
        for labels in [labels for labels in self.upstream_errors if labels[0] == url]:
            count = self.upstream_errors.pop(labels)
            folded = (GONE, *labels[1:])
            self.upstream_errors[folded] = self.upstream_errors.get(folded, 0) + count

    def render(self) -> bytes:
        """The whole page in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        self._name_the_busiest()
        yield self._by_model("loragate_requests", "Inference requests answered.", ("route", "model", "code"))
        yield self._by_model("loragate_tokens", "Tokens, by kind (prompt, completion).", ("model", "kind"))
        yield self.request_seconds.family("loragate_request_seconds", "From the first byte to the last.")
        yield self.time_to_first_token.family("loragate_time_to_first_token_seconds", "Streams: until the first event.")
        yield self.inter_token.family("loragate_inter_token_seconds", "Streams: between two pieces of the answer.")
        yield self.queue_seconds.family("loragate_queue_seconds", "Waiting for a place among those in flight.")
        yield self.overhead_seconds.family("loragate_overhead_seconds", "From the last byte in to the engine's socket.")
        yield self.adapter_load_seconds.family("loragate_adapter_load_seconds", "One adapter into one engine.")
        yield _counter("loragate_limited", "Requests refused by a limit.", ("reason",), self.limited)
        yield _counter("loragate_shed", "Requests refused because of load.", ("reason",), self.shed)
        yield _counter(
            "loragate_stream_terminated", "Streams that did not end well.", ("reason",), self.stream_terminated
        )
        yield _counter("loragate_upstream_errors", "Engine faults.", ("replica", "kind"), self.upstream_errors)
        yield CounterMetricFamily(
            "loragate_adapter_misses", "Requests that waited for their adapter.", value=self.adapter_misses
        )
        evictions = CounterMetricFamily(
            "loragate_adapter_evictions", "Adapters put out of an engine for others.", labels=("replica",)
        )
        for url, count in self.evictions():
            evictions.add_metric((url,), count)
        yield evictions
        for name, value in self.capacity().items():
            yield GaugeMetricFamily(name, _CAPACITY[name], value=value)
        yield CounterMetricFamily("loragate_client_closed", "Callers that left early.", value=self.client_closed)
        yield GaugeMetricFamily("loragate_in_flight", "Inference requests being answered.", value=self.in_flight())
        up = GaugeMetricFamily("loragate_replica_up", "1 while the replica is ready.", labels=("replica",))
        for url, ready in self.replica_up():
            up.add_metric((url,), 1.0 if ready else 0.0)
        yield up
        adapters = GaugeMetricFamily("loragate_adapters", "Adapter versions by state.", labels=("state",))
        for state, count in self.adapters().items():
            adapters.add_metric((state,), count)
        yield adapters
        yield from self.canaries.families()

    def _name_the_busiest(self) -> None:
        free = MODEL_LABELS - len(self._named)
        if free <= 0:
            return
        totals: dict[str, int] = {}
        for (_, model, _), count in self.requests.counts.items():
            if model not in self._named:
                totals[model] = totals.get(model, 0) + count
        first = not self._named  # nothing was shown before: nothing to carry over
        for model in sorted(totals, key=lambda name: totals[name], reverse=True)[:free]:
            self._named.add(model)
            if not first:
                self.requests.promote(model)
                self.tokens.promote(model)

    def _by_model(self, name: str, text: str, labels: Labels) -> CounterMetricFamily:
        counter = self.requests if labels[0] == "route" else self.tokens
        family = CounterMetricFamily(name, text, labels=labels)
        for values, count in counter.samples(self._named):
            family.add_metric(values, count)
        return family


def add(counts: dict[Labels, int], *labels: str) -> None:
    """One more of these labels; for the rare counters."""
    counts[labels] = counts.get(labels, 0) + 1


def _counter(name: str, text: str, labels: Labels, counts: Mapping[Labels, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
