"""What a scrape shows: names, the bounded model label, and that no counter ever goes down.

Label values stand in the alphabetical order of their names.
"""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import IDLE_SCRAPES, MODEL_LABELS, Metrics, add


def series(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels.values())] = sample.value
    return found


def test_every_metric_of_the_contract_is_on_the_page() -> None:
    metrics = Metrics()
    page = metrics.render().decode()
    for name in (
        "requests", "tokens", "limited", "shed", "stream_terminated", "upstream_errors", "client_closed",
    ):  # fmt: skip
        assert f"# TYPE loragate_{name}_total counter" in page
    for name in (
        "request_seconds", "time_to_first_token_seconds", "inter_token_seconds", "queue_seconds",
        "overhead_seconds", "adapter_load_seconds",
    ):  # fmt: skip
        assert f"# TYPE loragate_{name} histogram" in page
    for name in ("in_flight", "replica_up", "adapters"):
        assert f"# TYPE loragate_{name} gauge" in page


def test_the_busiest_models_have_a_label_and_the_rest_share_one() -> None:
    metrics = Metrics()
    for i in range(10_000):
        metrics.requests.add(("chat", f"m{i}", "200"), 2 if i < MODEL_LABELS else 1)
    shown = series(metrics, "loragate_requests_total")
    assert len(shown) == MODEL_LABELS + 1
    assert shown["200", "m3", "chat"] == 2
    assert shown["200", "other", "chat"] == 10_000 - MODEL_LABELS


def test_no_series_goes_down_when_a_model_gets_its_own_label() -> None:
    metrics = Metrics()
    metrics.requests.add(("chat", "early", "200"))
    before = series(metrics, "loragate_requests_total")
    for i in range(MODEL_LABELS + 20):
        metrics.requests.add(("chat", f"late{i}", "200"), 1 + i)
        after = series(metrics, "loragate_requests_total")
        assert all(after.get(labels, 0) >= value for labels, value in before.items())
        assert sum(after.values()) == sum(before.values()) + 1 + i
        before = after
    assert len(before) == MODEL_LABELS + 1


def test_histograms_count_into_the_right_bucket() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.3, 500.0):
        metrics.request_seconds.observe(seconds)
    shown = series(metrics, "loragate_request_seconds_bucket")
    assert (shown["0.005",], shown["0.5",], shown["120.0",], shown["+Inf",]) == (2, 3, 3, 4)


def test_rare_counters_add_up() -> None:
    metrics = Metrics()
    add(metrics.limited, "rate_limit_exceeded")
    add(metrics.limited, "rate_limit_exceeded")
    assert series(metrics, "loragate_limited_total") == {("rate_limit_exceeded",): 2}


def test_a_model_that_is_called_as_the_rest_is_counted_with_the_rest() -> None:
    """`other` is a name like any: two series with the same labels would be one sample lost."""
    metrics = Metrics()
    metrics.requests.add(("chat", "other", "200"), 100)
    for i in range(MODEL_LABELS + 10):
        metrics.requests.add(("chat", f"m{i}", "200"), 3)
    page = [line.partition(" ")[0] for line in metrics.render().decode().splitlines() if line[0] != "#"]
    assert len(page) == len(set(page))
    assert series(metrics, "loragate_requests_total")["200", "other", "chat"] == 130


def test_what_has_never_happened_is_zero_where_an_alert_waits_for_the_first_time() -> None:
    """Prometheus sees no increase in a series that begins with 1."""
    assert series(Metrics(), "loragate_canary_ended_total") == {
        ("errors",): 0, ("finish_reasons",): 0, ("latency",): 0,
    }  # fmt: skip


def test_whoever_is_idle_or_gone_leaves_its_label_to_another() -> None:
    metrics = Metrics()
    for i in range(MODEL_LABELS):
        metrics.requests.add(("chat", f"m{i}", "200"), 2)
        metrics.tokens.add((f"m{i}", "prompt"), 7)
        metrics.canaries.add(f"m{i}", "live", "ok")
    metrics.render()
    metrics.requests.add(("chat", "late", "200"), 100)
    metrics.tokens.add(("late", "prompt"), 9)
    assert ("200", "late", "chat") not in series(metrics, "loragate_requests_total")
    for _ in range(IDLE_SCRAPES):
        metrics.requests.add(("chat", "m0", "200"))
        metrics.render()
    metrics.requests.add(("chat", "late", "200"), 3)
    shown = series(metrics, "loragate_requests_total")
    assert (shown["200", "late", "chat"], shown["200", "other", "chat"]) == (0, 103), "what it had before stays there"
    assert shown["200", "m0", "chat"] == 2 + IDLE_SCRAPES, "busy ones keep theirs"
    assert len(shown) == MODEL_LABELS + 1
    metrics.requests.add(("chat", "late", "200"), 4)
    assert series(metrics, "loragate_requests_total")["200", "late", "chat"] == 4

    metrics.drop_models(lambda names: {"late", "m0"} & set(names))
    metrics.requests.add(("chat", "late", "200"))  # was on its way when it was removed
    metrics.requests.add(("chat", "m0", "200"), 5)
    metrics.requests.add(("chat", "new", "200"), 6)
    shown = series(metrics, "loragate_requests_total")
    assert (shown["200", "m0", "chat"], shown["200", "new", "chat"]) == (0, 0)
    assert shown["200", "other", "chat"] == 103 + 5 + 6 + 1
    assert ("m0", "prompt") not in {(model, kind) for kind, model in series(metrics, "loragate_tokens_total")}
    assert len({model for _, model, _ in series(metrics, "loragate_canary_requests_total")}) == MODEL_LABELS - 1


def test_a_scrape_keeps_nothing_of_those_without_a_label() -> None:
    """10,000 names were 200 ms of every scrape, in which no stream goes on."""
    metrics = Metrics()
    for i in range(10_000):
        metrics.requests.add(("chat", f"m{i}", "200"))
    metrics.render()
    assert len(metrics.requests.counts) == MODEL_LABELS
