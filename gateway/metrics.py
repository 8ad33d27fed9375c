"""Every metric and every label name of the product; one collector turns plain counts into Prometheus text.

The hot path adds to dicts and lists (about 0.1 µs each, where a prometheus-client update costs 1-2 µs); only a
scrape builds metric objects. The `model` label takes the 50 busiest public names, all others share `other`; a name
that had no request for an hour, or is gone, leaves its label to another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from adapters.canary import ENDS

MODEL_LABELS = 50
IDLE_SCRAPES = 240  # an hour, at one every 15 s: whoever had no request for so long gives its label to who has
OTHER = "other"
NO_MODEL = "none"  # label of requests that named no model of ours
GONE = "gone"  # replica label of all that have left: addresses come and go for ever

Labels: TypeAlias = tuple[str, ...]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


_CAPACITY = {
    "loragate_adapter_slots": "Adapters that all ready engines hold together, beside pinned ones.",
    "loragate_adapter_working_set": "Adapters asked for in the last five minutes, but pinned ones.",
    "loragate_adapter_window_requests": "Requests for adapters in the last five minutes.",
    "loragate_adapter_window_misses": "Of those, the ones that waited for a load.",
}
_TRAINING = {
    "progress_ratio": "Share of its steps that a running training job has done.",
    "loss": "Its newest training loss.",
    "validation_loss": "Its newest validation loss.",
    "tokens_per_second": "Tokens that it trains on each second.",
    "left_seconds": "Until its training ends.",
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
    """Counters with a `model` label: counted per exact name, shown for some names and for all others as `other`.

    A name that gets a label has what it had counted before in `other`, and begins with 0; one that loses its label
    is no longer shown. So no series ever goes down, and 10,000 names cost a scrape what they did since the last one.
    """

    __slots__ = ("counts", "model_at", "others")

    def __init__(self, model_at: int) -> None:
        self.counts: dict[Labels, int] = {}  # of names without a label: since the last scrape
        self.model_at = model_at  # place of the model in the label tuple
        self.others: dict[Labels, int] = {}

    def add(self, labels: Labels, amount: int = 1) -> None:
        counts = self.counts
        counts[labels] = counts.get(labels, 0) + amount

    def samples(self, named: Container[str]) -> Iterator[tuple[Labels, int]]:
        """What a scrape shows; `named` are the models with a label of their own."""
        for labels in [labels for labels in self.counts if labels[self.model_at] not in named]:
            self._fold(labels, self.counts.pop(labels))
        yield from self.counts.items()
        yield from self.others.items()

    def begin(self, model: str) -> None:
        """From now on `model` has its own label."""
        for labels in [labels for labels in self.counts if labels[self.model_at] == model]:
            self._fold(labels, self.counts[labels])
            self.counts[labels] = 0

    def forget(self, model: str) -> None:
        """It is shown no longer."""
        for labels in [labels for labels in self.counts if labels[self.model_at] == model]:
            del self.counts[labels]

    def _fold(self, labels: Labels, count: int) -> None:
        folded = (*labels[: self.model_at], OTHER, *labels[self.model_at + 1 :])
        self.others[folded] = self.others.get(folded, 0) + count


class CanaryCounts:
    """What canaries did. The first 50 names that had one keep a label of their own until they are removed."""

    __slots__ = ("ended", "named", "percent", "requests")

    def __init__(self) -> None:
        self.requests: dict[Labels, int] = {}  # model, arm, outcome
        self.ended: dict[Labels, int] = {(reason,): 0 for reason in ENDS}  # an alert waits for the first of each
        self.percent: dict[str, float] = {}  # public name → percent of callers, of canaries that run
        self.named: set[str] = set()

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

    def forget(self, model: str) -> None:
        """It is shown no longer."""
        self.named.discard(model)
        for labels in [labels for labels in self.requests if labels[0] == model]:
            del self.requests[labels]

    def _label(self, model: str) -> str:
        if model not in self.named:
            if len(self.named) >= MODEL_LABELS:
                return OTHER
            self.named.add(model)
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
        self.training_jobs: Callable[[], Mapping[str, int]] = dict
        self.training_runs: Callable[[], Iterable[tuple[str, Mapping[str, float]]]] = lambda: ()
        self._named: dict[str, tuple[int, int]] = {}  # model → requests at the scrape at which it last had new ones
        self._scrapes = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def drop_models(self, gone: Callable[[Collection[str]], Collection[str]]) -> None:
        """What is gone leaves its label to others."""
        for model in gone(self._named.keys() - {NO_MODEL}):
            self._forget(model)
        for model in gone(self.canaries.named):
            self.canaries.forget(model)

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
        yield from self._training()

    def _training(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("loragate_training_jobs", "Training jobs by state.", labels=("state",))
        for state, count in self.training_jobs().items():
            jobs.add_metric((state,), count)
        yield jobs
        runs = list(self.training_runs())
        for name, text in _TRAINING.items():
            family = GaugeMetricFamily(f"loragate_training_{name}", text, labels=("job",))
            for job, figures in runs:
                if name in figures:
                    family.add_metric((job,), figures[name])
            yield family

    def _name_the_busiest(self) -> None:
        """Give the labels that are free, and those of names that are idle, to the busiest since the last scrape."""
        self._scrapes += 1
        totals: dict[str, int] = {}
        for (_, model, _), count in self.requests.counts.items():
            totals[model] = totals.get(model, 0) + count
        named = self._named
        for model, (before, _) in named.items():
            total = totals.pop(model, 0)
            if total != before:
                named[model] = total, self._scrapes
        totals.pop(OTHER, None)  # a name like any, and the label of the rest
        idle = [model for model, (_, at) in named.items() if self._scrapes - at >= IDLE_SCRAPES]
        first = not named  # nothing was shown before: nothing to carry over
        for model in sorted(totals, key=lambda name: totals[name], reverse=True)[:MODEL_LABELS]:
            if len(named) >= MODEL_LABELS:
                if not idle:
                    return
                self._forget(idle.pop(0))
            named[model] = totals[model] if first else 0, self._scrapes
            if not first:
                self.requests.begin(model)
                self.tokens.begin(model)

    def _forget(self, model: str) -> None:
        del self._named[model]
        self.requests.forget(model)
        self.tokens.forget(model)

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
