"""The bench's own checks: its mock and its load agree on every count, and its arithmetic is right."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.figures import added, ratio, spread
from bench.load import Endpoint, LoadFailed, Plan, chat_request, run_load
from bench.measure import cpu_seconds, memory
from bench.mock_engine import ANSWER_BYTES, MODEL, chat_body
from bench.profile import summarise
from bench.real import Side, through_and_direct
from bench.report import Run, render
from bench.scenarios import figures, percentile

MOCK = Path(__file__).parents[2] / "bench" / "mock_engine.py"


@pytest.fixture(scope="module")
def mock() -> Iterator[tuple[int, int]]:
    """(pid, port) of a mock engine whose streams have 10 tokens, 2 ms apart."""
    command = [sys.executable, str(MOCK), "--gap", "0.002", "--tokens", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline().split()[1])
        process.terminate()
    assert process.returncode == 0


def test_bodies_have_the_sizes_that_the_report_names() -> None:
    assert len(chat_request(MODEL)) == 300
    assert len(chat_request(MODEL, stream=True)) == 300
    assert len(chat_body()) == ANSWER_BYTES == 430
    assert json.loads(chat_body())["choices"][0]["message"]["role"] == "assistant"


def test_closed_loop_counts_every_answer_and_both_cpu_clocks(mock: tuple[int, int]) -> None:
    pid, port = mock
    endpoint = Endpoint(port)
    outcome = run_load(
        endpoint, (endpoint.request(chat_request(MODEL)),), Plan(4, seconds=0.3), cpu=lambda: cpu_seconds(pid)
    )
    assert outcome.completed == len(outcome.latencies) > 4
    assert outcome.failed == 0
    assert 0 < outcome.peer_cpu_s <= outcome.seconds * 1.5
    assert outcome.own_cpu_s > 0
    assert memory(pid).rss_mb >= memory(pid).pss_mb * 0.5 > 0


def test_arrivals_come_at_their_rate_and_all_are_answered(mock: tuple[int, int]) -> None:
    endpoint = Endpoint(mock[1])
    outcome = run_load(endpoint, (endpoint.request(chat_request(MODEL)),), Plan(4, seconds=0.5, rate=200))
    assert outcome.failed == 0
    assert outcome.completed == len(outcome.latencies)
    assert 70 <= outcome.completed <= 130  # 100 ± 3 sigma of a Poisson count, from a fixed seed


def test_latency_at_a_rate_counts_from_when_a_request_was_due(mock: tuple[int, int]) -> None:
    """One connection, answers of 20 ms, 100 arrivals a second: the queue must show in the latencies."""
    endpoint = Endpoint(mock[1])
    requests = (endpoint.request(chat_request(MODEL, stream=True)),)
    outcome = run_load(endpoint, requests, Plan(1, seconds=0.4, rate=100), streaming=True)
    assert outcome.completed > 10
    assert max(outcome.latencies) > 3 * min(outcome.latencies)


def test_streams_are_counted_to_the_token(mock: tuple[int, int]) -> None:
    endpoint = Endpoint(mock[1])
    requests = (endpoint.request(chat_request(MODEL, stream=True)),)
    outcome = run_load(endpoint, requests, Plan(8, streams=16), streaming=True)
    assert (outcome.completed, outcome.failed, outcome.tokens) == (16, 0, 160)
    assert len(outcome.token_delay) == 160
    assert min(outcome.token_delay) > 0
    assert len(outcome.first_token) == 16


@pytest.mark.parametrize(
    "options", [{}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
def test_usage_is_streamed_as_vllm_would(mock: tuple[int, int], options: dict[str, bool]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", mock[1])
    asked = {"model": MODEL, "stream": True, "stream_options": options or None}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked))
    lines = connection.getresponse().read().decode().strip().split("\n\n")
    connection.close()
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    with_usage = [chunk for chunk in chunks if "usage" in chunk]
    assert len(chunks) == 11 + bool(options)  # the role, ten tokens, and the usage where asked for
    assert len(with_usage) == {0: 0, 1: 1, 2: 12}[len(options)]
    assert not options or (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 10)


def test_refusals_and_wrong_answers_are_failures_not_figures(mock: tuple[int, int]) -> None:
    endpoint = Endpoint(mock[1])
    outcome = run_load(endpoint, (endpoint.request(b"{}", "/nowhere"),), Plan(2, seconds=0.05))
    assert outcome.completed == 0
    assert outcome.failed > 0
    assert "cpu_us" not in figures(outcome)
    with pytest.raises(LoadFailed, match="takes no connection"):
        run_load(Endpoint(1), (b"",), Plan(1, seconds=0.05))


def test_medians_differences_and_ratios_are_taken_within_rounds() -> None:
    own = [{"cpu_us": 60.0}, {"cpu_us": 90.0}, {}, {"cpu_us": 40.0}]
    rival = [{"cpu_us": 50.0}, {"cpu_us": 100.0}, {"cpu_us": 1.0}, {"cpu_us": 80.0}]
    times = ratio(own, rival, "cpu_us")
    assert times is not None
    assert (times.median, times.low, times.high) == (0.9, 0.5, 1.2)
    more = added(own, rival, "cpu_us")
    assert more is not None
    assert (more.median, more.low, more.high) == (-10.0, -40.0, 10.0)
    assert ratio(own, [], "cpu_us") is None
    assert ratio([{"cpu_us": 1.0}], [{"cpu_us": 0.0}], "cpu_us") is None
    both = spread([3.0, 1.0])
    assert both is not None
    assert both.text(1) == "2.0 (1.0–3.0)"
    assert percentile(list(range(100)), 0.99) == 99
    assert percentile([5.0], 0.5) == 5.0


def side(gateway_us: float) -> Run:
    """A stored side-by-side run of two rounds."""

    def rows(cpu: float) -> dict[str, list[dict[str, float]]]:
        turn = {"cpu_us": cpu, "rps": 1e6 / cpu, "failed": 0, "latency_p50": cpu, "latency_p99": 2 * cpu}
        tokens = {"token_cpu_us": cpu / 2, "first_p50": cpu, "first_p99": cpu, "delay_p50": cpu, "delay_p99": cpu}
        return {"c16": [turn, turn], "streams": [{**tokens, "failed": 0}] * 2}

    costs = {"direct": rows(10), "gateway": rows(gateway_us), "vllm-router": rows(50), "litellm": rows(5000)}
    names = ["c16", "streams"]
    data = {
        "rounds": 2,
        "peers": ["gateway", "vllm-router", "litellm"],
        "starts": {"gateway": [1.0, 1.2], "vllm-router": [0.5], "litellm": [9.0]},
        "memory": {"gateway": {"rss_mb": 90.0, "pss_mb": 80.0}},
        "samples": {name: {peer: cost[name] for peer, cost in costs.items()} for name in names},
    }
    return Run("side_by_side", "today", "a machine", data)


@pytest.mark.parametrize(("cost", "verdict"), [(55.0, "met"), (65.0, "**not met**")])
def test_report_says_whether_the_bar_is_met(cost: float, verdict: str) -> None:
    text = render([side(cost)])
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert f"| {cost / 50:.2f} | 1.20 | {verdict} |" in lines["| CPU per request ÷ vllm-router, c=16 (goal 1.0)"]
    assert f"| {cost / 50:.2f} | 1.00 | **not met** |" in lines["| CPU per SSE token ÷ vllm-router (goal 0.85)"]
    assert "| 90 | 100 | met |" in lines["| memory (RSS), MB"]
    assert "| 1.10 (1.00–1.20) | 1.50 | met |" in lines["| start, s"]


def test_profile_sums_stacks_by_function() -> None:
    lines = ["main (app.py:1);f (/x/site-packages/lib/m.py:10) 3", "main (app.py:2);f (/x/site-packages/lib/m.py:11) 1"]
    text = summarise([*lines, "main (app.py:9) 4"])
    assert "| `f (lib/m.py)` | 50.0% | 50.0% |" in text
    assert "| `main (app.py)` | 50.0% | 100.0% |" in text


def test_monotonic_clock_is_shared_between_processes() -> None:
    """What a token's time on its way rests on."""
    before = time.monotonic_ns()
    said = subprocess.run(
        [sys.executable, "-c", "import time; print(time.monotonic_ns())"], capture_output=True, check=True
    )
    assert before < int(said.stdout) < time.monotonic_ns()


def test_real_comparison_counts_the_engines_own_usage(mock: tuple[int, int]) -> None:
    """Both sides are the mock here: the same tokens must be counted on both, as its usage chunk says."""
    side_of = Side(f"http://127.0.0.1:{mock[1]}", None, ("a", "b"))
    found = through_and_direct(side_of, side_of, rounds=2, streams=2, max_tokens=10, extra={"ignore_eos": True})
    for turns in found.samples.values():
        assert [(turn["completed"], turn["failed"], turn["tokens"]) for turn in turns] == [(8, 0, 80)] * 2
        assert all(turn["tokens_per_s"] > 0 for turn in turns)
    text = render([Run("real", "today", "a machine", asdict(found))])
    assert "2 concurrent streams of 10 tokens over 2 models" in text
    assert "| real vLLM: direct tokens/s ÷ through the gateway |" in text


def test_what_happened_in_the_fleet_is_kept_word_for_word() -> None:
    run = Run("fleet", "today", "a machine", {"adapters": 24, "callers": 12, "text": "wrong answers        0"})
    assert "24 adapters on two engines of four slots, 12 callers" in render([run])
    assert "```\nwrong answers        0\n```" in render([run])


def test_large_registry_is_judged_against_the_empty_one() -> None:
    turns = {"empty": [{"cpu_us": 50.0, "rps": 1.0}], "full": [{"cpu_us": 60.0, "rps": 1.0}]}
    used = {"rss_mb": 120.0, "pss_mb": 80.0}
    data = {
        "adapters": 10_000,
        "keys": 10_000,
        "used": 64,
        "samples": turns,
        "starts": {"empty": 1.0, "full": 1.4},
        "scrapes_ms": {"empty": [2.0], "full": [3.0, 5.0]},
        "memory": {"empty": used, "full": used},
    }
    text = render([Run("registry", "today", "a machine", data)])
    assert "| CPU per request with 10,000 adapters and keys ÷ empty | 1.20 | 1.10 | **not met** |" in text
    assert "| /metrics scrape with them, ms | 4.0 (3.0–5.0) | 100.0 | met |" in text
    assert "| memory with them (RSS), MB | 120 | 100 | **not met** |" in text
