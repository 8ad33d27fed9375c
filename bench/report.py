"""Turns raw figures into bench/RESULTS.md. Pure text: runs nothing, opens nothing, knows no machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.figures import Sample, Spread, added, of, ratio, spread

RIVAL, GATEWAY, DIRECT, SLOW = "vllm-router", "gateway", "direct", "litellm"
Samples = dict[str, dict[str, list[Sample]]]


@dataclass(frozen=True, slots=True)
class Run:
    """One stored measurement: which kind it is, when and on what it was made, and its raw figures."""

    kind: str  # side_by_side, registry, placement, real or fleet
    taken: str
    machine: str
    data: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cell(value: Spread | None, digits: int = 0, scale: float = 1.0, unit: str = "") -> str:
    """A figure with its spread, or a dash."""
    return (
        "–" if value is None else Spread(value.median * scale, value.low * scale, value.high * scale).text(digits, unit)
    )


def render(runs: Sequence[Run]) -> str:
    """The whole of RESULTS.md from the runs that exist."""
    parts = ["# Benchmark results", INTRODUCTION]
    makers = {"side_by_side": side_by_side, "registry": registry, "placement": placement, "real": real}
    makers |= {"fleet": fleet, "training": training}
    ordered = sorted(runs, key=lambda run: list(makers).index(run.kind))
    parts += [bar(ordered)]
    for run in ordered:
        parts += makers[run.kind](run)
    return "\n\n".join(part for part in parts if part) + "\n"


INTRODUCTION = (
    "Made by `make bench`, the parts on real vLLM by `python -m bench real` and `python -m bench fleet`, the one on\n"
    "LLaMA-Factory by `python -m bench training`. Every figure\n"
    "is the median of the rounds, with the lowest and highest in brackets; in each round every peer takes its turn at\n"
    "every load, so ratios and differences are taken within a round. CPU is user and system time of the proxy's whole\n"
    "process tree, from its CPU clock. Latency is what the proxy adds: its figure minus the figure without a proxy in\n"
    "the same round."
)


def side_by_side(run: Run) -> list[str]:
    data = run.data
    samples: Samples = data["samples"]
    peers: list[str] = data["peers"]
    name = {peer: run.versions.get(peer, peer) for peer in peers}
    parts = [f"## Side by side\n\n{run.taken}, {run.machine}. Rounds: {data['rounds']}; one worker each, loopback."]
    parts.append("### CPU µs per request and per SSE token\n\n" + _cost(samples, peers, name))
    parts.append("### Requests per second\n\n" + _throughput(samples, peers, name))
    parts.append("### Added latency, µs, p50 / p99\n\n" + _latency(samples, peers, name))
    parts.append("### 64 SSE streams, added µs, p50 / p99\n\n" + _streams(samples, peers, name))
    parts.append("### Start and memory\n\n" + _resources(data, peers, name))
    parts.append(_headroom(samples))
    return parts


def _rounds(samples: Samples, scenario: str, peer: str) -> list[Sample]:
    return samples.get(scenario, {}).get(peer, [])


def _cost(samples: Samples, peers: Sequence[str], name: dict[str, str]) -> str:
    head = ["", "c=1", "c=16", "c=64", "500/s", "2,000/s", "SSE token", f"c=16, × {RIVAL}", f"token, × {RIVAL}"]
    rows = []
    for peer in peers:
        row = [name[peer]]
        row += [cell(of(_rounds(samples, s, peer), "cpu_us")) for s in ("c1", "c16", "c64", "rate500", "rate2000")]
        row.append(cell(of(_rounds(samples, "streams", peer), "token_cpu_us"), 1))
        row.append(cell(ratio(_rounds(samples, "c16", peer), _rounds(samples, "c16", RIVAL), "cpu_us"), 2))
        streams = _rounds(samples, "streams", peer), _rounds(samples, "streams", RIVAL)
        rows.append([*row, cell(ratio(*streams, "token_cpu_us"), 2)])
    return table(head, rows)


def _throughput(samples: Samples, peers: Sequence[str], name: dict[str, str]) -> str:
    rows = []
    for peer in (DIRECT, *peers):
        row = [name.get(peer, "no proxy")]
        row += [cell(of(_rounds(samples, s, peer), "rps")) for s in ("c1", "c16", "c64")]
        row.append(cell(ratio(_rounds(samples, "c16", peer), _rounds(samples, "c16", RIVAL), "rps"), 2))
        turns = [sample for scenario in samples.values() for sample in scenario.get(peer, [])]
        rows.append([*row, f"{sum(sample.get('failed', 0) for sample in turns):.0f}"])
    head = ["", "c=1", "c=16", "c=64", f"c=16, × {RIVAL}", "failed in all loads"]
    return table(head, rows)


def _pair(samples: Samples, scenario: str, peer: str, figure: str) -> str:
    own, direct = _rounds(samples, scenario, peer), _rounds(samples, scenario, DIRECT)
    if peer == DIRECT:
        both = [of(own, f"{figure}_{share}") for share in ("p50", "p99")]
    else:
        both = [added(own, direct, f"{figure}_{share}") for share in ("p50", "p99")]
    return "–" if both[0] is None else " / ".join(cell(each) for each in both)


def _latency(samples: Samples, peers: Sequence[str], name: dict[str, str]) -> str:
    loads = ("c1", "c64", "rate500", "rate2000")
    rows = [["no proxy (absolute)", *(_pair(samples, load, DIRECT, "latency") for load in loads)]]
    rows += [[name[peer], *(_pair(samples, load, peer, "latency") for load in loads)] for peer in peers]
    return table(["", "c=1", "c=64", "500/s", "2,000/s"], rows)


def _streams(samples: Samples, peers: Sequence[str], name: dict[str, str]) -> str:
    rows = [["no proxy (absolute)", *(_pair(samples, "streams", DIRECT, figure) for figure in ("first", "delay"))]]
    rows += [
        [name[peer], *(_pair(samples, "streams", peer, figure) for figure in ("first", "delay"))] for peer in peers
    ]
    text = table(["", "time to first token", "each token on its way"], rows)
    if f"{RIVAL}-1-thread" in peers:
        text += (
            f"\n\nAs it comes, {RIVAL} has a thread per core; the row below it is the same program with one, as the\n"
            "gateway has."
        )
    return text


def _resources(data: dict[str, Any], peers: Sequence[str], name: dict[str, str]) -> str:
    rows = []
    for peer in peers:
        used = data["memory"].get(peer, {})
        size = [f"{used[each]:.0f}" if each in used else "–" for each in ("rss_mb", "pss_mb")]
        rows.append([name[peer], cell(spread(data["starts"].get(peer, [])), 2), *size])
    return table(["", "start to first 200, s", "RSS after load, MB", "PSS, MB"], rows)


def _headroom(samples: Samples) -> str:
    direct = _rounds(samples, "c16", DIRECT)
    generator, mock = cell(of(direct, "generator_us"), 1), cell(of(direct, "cpu_us"), 1)
    return (
        f"Without a proxy, at 16 connections, the load generator spends {generator} µs of CPU and the mock engine\n"
        f"{mock} µs a request: neither is what limits a peer. They share the cores with it, though, so requests per\n"
        "second and latency under full load say less than CPU time does."
    )


def registry(run: Run) -> list[str]:
    data = run.data
    rows = []
    for side, title in (("empty", "empty"), ("full", f"{data['adapters']:,} adapters, {data['keys']:,} keys")):
        cpu, rate = of(data["samples"][side], "cpu_us"), of(data["samples"][side], "rps")
        used = data["memory"][side]
        row = [title, cell(cpu, 1), cell(rate), cell(spread(data["scrapes_ms"][side]), 1)]
        rows.append([*row, f"{data['starts'][side]:.2f}", f"{used['rss_mb']:.0f} / {used['pss_mb']:.0f}"])
    times = ratio(data["samples"]["full"], data["samples"]["empty"], "cpu_us")
    head = ["registry", "CPU µs per request, c=16", "requests/s", "/metrics scrape, ms", "start, s", "RSS / PSS, MB"]
    text = f"Requests go over {data['used']} keys and adapters in turn; CPU {cell(times, 2)} × the empty registry's."
    return [f"## A large registry\n\n{run.taken}, {run.machine}.", table(head, rows), text]


def placement(run: Run) -> list[str]:
    data, parts = run.data, []
    shape: dict[str, Any] = data["shape"]
    told = (
        f"{shape['adapters']:,} adapters × {shape['replicas']} replicas × {shape['slots']} slots, simulated: "
        f"{shape['rate']:.0f} requests/s for {shape['seconds']:.0f} s after\n{shape['warm_s']:.0f} s that do not "
        f"count; {shape['service_s']:g} s of decoding each (mean of an exponential), {shape['seats']} at once on a "
        f"replica; {shape['load_s']:g} s per\nload, one at a time on a replica. Popularity by Zipf; each minute "
        f"{shape['drift']:.0%} of the ranks change hands. The same requests\nfor all, seed {shape['seed']}. Bounded "
        "loads: at most 1.25 × the mean of outstanding requests. A hit is a request sent\nwhere its adapter is loaded."
    )
    head = ["", "hits", "loads/s", "busiest replica ÷ mean", "delay p50, ms", "delay p99, ms", "loads per lost replica"]
    for skew, policies in data["samples"].items():
        rows = [
            [
                f"**{name}**" if name == "loragate" else name,
                f"{each['hit']:.1%}",
                f"{each['loads']:.1f}",
                f"{each['worst']:.2f}",
                f"{each['delay_p50'] * 1e3:.0f}",
                f"{each['delay_p99'] * 1e3:.0f}",
                f"{each['loss_loads']:.0f}" if "loss_loads" in each else "–",
            ]
            for name, each in policies.items()
        ]
        parts.append(f"Skew {skew}:\n\n{table(head, rows)}")
    cost = data["costs"]
    figures = [
        ["the whole plan, from nothing, ms", cell(spread(cost["first_ms"]), 1)],
        ["the whole plan anew, every demand 5 % off, ms", cell(spread(cost["place_ms"]), 1)],
        ["the whole plan anew, one replica joined, ms", cell(spread(cost["joined_ms"]), 1)],
        ["order of replicas for a name, the first time, µs", cell(spread(cost["home_first_us"]), 1)],
        ["order of replicas for a name, later, µs", cell(spread(cost["home_us"]), 1)],
        ["choosing the replica of a request (pick, take, give back), µs", cell(spread(cost["pick_us"]), 1)],
        ["first snapshot of the registry, ms", cell(spread(cost["snapshot_ms"]), 0)],
        ["flip: the snapshot after a promotion, ms", cell(spread(cost["flip_ms"]), 0)],
    ]
    parts.append("CPU of the real code at that size:\n\n" + table(["", "CPU"], figures))
    return [f"## Placement\n\n{run.taken}, {run.machine}.\n{told}", *parts, PLACEMENT_NOTE]


PLACEMENT_NOTE = (
    "Delay is from arrival to the first step of decoding. Loads per lost replica: how many more than without the loss\n"
    "in the 50 s after it (it is back, empty, after 30 s). Whoever does not look at what is loaded can balance\n"
    "outstanding requests almost perfectly, and pays for it in hits and delay."
)


def real(run: Run) -> list[str]:
    data = run.data
    rows = []
    for side, title in (("direct", "direct"), ("gateway", "through the gateway")):
        turns = data["samples"][side]
        first = [cell(of(turns, f"first_{share}"), 1, 1e-3) for share in ("p50", "p99")]
        rows.append([title, cell(of(turns, "tokens_per_s")), *first, f"{sum(each['failed'] for each in turns):.0f}"])
    share = ratio(data["samples"]["gateway"], data["samples"]["direct"], "tokens_per_s")
    head = ["", "tokens/s", "first token p50, ms", "first token p99, ms", "failed"]
    told = f"{data['streams']} concurrent streams of {data['max_tokens']} tokens over {len(data['models'])} models."
    text = f"Through the gateway: {cell(share, 1, 100, ' %')} of direct."
    return [f"## Real vLLM\n\n{run.taken}, {run.machine}. {told}", table(head, rows), text]


def fleet(run: Run) -> list[str]:
    told = (
        f"{run.data['adapters']} adapters on two engines of four slots, {run.data['callers']} callers without a pause "
        "(Zipf over the names), versions that are\npromoted, rolled back and tried as a canary, and one engine that is "
        "killed and started again. Each adapter was trained to\nanswer with its own number, so every answer is held "
        "against what its name allowed when it was asked."
    )
    return [f"## Real vLLM, two engines\n\n{run.taken}, {run.machine}.\n{told}", f"```\n{run.data['text']}\n```"]


def training(run: Run) -> list[str]:
    samples = run.data["samples"]
    rows = [
        [
            title,
            *(
                cell(of(samples[side], figure), digits)
                for figure, digits in (("wall_s", 1), ("cpu_s", 1), ("own_s", 2))
            ),
        ]
        for side, title in (("bare", "`llamafactory-cli train`"), ("watched", "the same as a job"))
    ]
    told = (
        f"{run.data['steps']} steps on the demo's base, one thread, ten checkpoints; from the trainer's start to the "
        "judgement of\nwhat came out."
    )
    return [
        f"## A training run\n\n{run.taken}, {run.machine}. {told}",
        table(["", "seconds", "CPU, seconds", "of it the worker's own"], rows),
    ]


def bar(runs: Sequence[Run]) -> str:
    """What was promised, what was measured, and whether it holds."""
    rows = []
    for run in runs:
        if run.kind == "side_by_side" and GATEWAY in run.data["peers"]:
            rows += _bar_side(run.data)
        elif run.kind == "registry":
            cpu = ratio(run.data["samples"]["full"], run.data["samples"]["empty"], "cpu_us")
            rows.append(_line(f"CPU per request with {run.data['adapters']:,} adapters and keys ÷ empty", cpu, 1.10, 2))
            rows.append(_line("/metrics scrape with them, ms", spread(run.data["scrapes_ms"]["full"]), 100, 1))
            rows.append(_line("memory with them (RSS), MB", spread([run.data["memory"]["full"]["rss_mb"]]), 100, 0))
        elif run.kind == "placement":
            rows += _bar_placement(run.data)
        elif run.kind == "real":
            share = ratio(run.data["samples"]["direct"], run.data["samples"]["gateway"], "tokens_per_s")
            rows.append(_line("real vLLM: direct tokens/s ÷ through the gateway", share, 1 / 0.98, 3))
        elif run.kind == "training":
            for figure, name in (("wall_s", "time"), ("cpu_s", "CPU")):
                share = ratio(run.data["samples"]["watched"], run.data["samples"]["bare"], figure)
                rows.append(_line(f"training as a job ÷ bare `llamafactory-cli`, {name}", share, 1.03, 3))
    return "## The bar\n\n" + table(["", "measured", "at most", ""], rows) if rows else ""


def _bar_side(data: dict[str, Any]) -> list[list[str]]:
    samples: Samples = data["samples"]
    own, rival = _rounds(samples, "c16", GATEWAY), _rounds(samples, "c16", RIVAL)
    streams = [_rounds(samples, "streams", peer) for peer in (GATEWAY, RIVAL, DIRECT)]
    lines = [
        _line(f"CPU per request ÷ {RIVAL}, c=16 (goal 1.0)", ratio(own, rival, "cpu_us"), 1.2, 2),
        _line("CPU per request ÷ LiteLLM, c=16", ratio(own, _rounds(samples, "c16", SLOW), "cpu_us"), 0.02, 4),
        _line(f"CPU per SSE token ÷ {RIVAL} (goal 0.85)", ratio(streams[0], streams[1], "token_cpu_us"), 1.0, 2),
    ]
    for figure, title in (("first_p99", "time to first token"), ("delay_p99", "token on its way")):
        theirs = added(streams[1], streams[2], figure)
        if theirs is not None:
            ours = added(streams[0], streams[2], figure)
            lines.append(_line(f"added p99 at 64 streams, {title}, µs (at most {RIVAL}'s)", ours, theirs.median, 0))
    used = data["memory"].get(GATEWAY, {})
    lines.append(_line("memory (RSS), MB", spread([used["rss_mb"]] if used else []), 100, 0))
    return [*lines, _line("start, s", spread(data["starts"].get(GATEWAY, [])), 1.5, 2)]


def _bar_placement(data: dict[str, Any]) -> list[list[str]]:
    shape, cost = data["shape"], data["costs"]
    size = f"{shape['adapters']:,} × {shape['replicas']} × {shape['slots']}"
    return [_line(f"placement of {size}, CPU ms", spread(cost["place_ms"]), 20, 1)]


def _line(what: str, value: Spread | None, limit: float, digits: int) -> list[str]:
    verdict = "not measured" if value is None else "met" if value.median <= limit else "**not met**"
    return [what, cell(value, digits), f"{limit:.{digits}f}", verdict]
