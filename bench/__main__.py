"""The bench's command line: `python -m bench [side|registry|placement|all|real|fleet|training|profile]`, see --help."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from platformdirs import user_cache_path

from bench.environments import PINS, NoEnvironment
from bench.load import LoadFailed
from bench.measure import busy, machine
from bench.peers import PEERS, PeerFailed, Place
from bench.placement import placement, shape_of
from bench.profile import profile
from bench.real import Real, Side, through_and_direct
from bench.registry import large_registry
from bench.report import Run, render
from bench.scenarios import SCENARIOS, shortened, side_by_side
from bench.training import STEPS, RunFailed, training
from bench.up import demo_up

RESULTS = Path(__file__).with_name("RESULTS.md")
USUAL = ("nginx", "gateway", "vllm-router", "vllm-router-1-thread", "litellm")
KINDS = ("side_by_side", "registry", "placement", "real", "fleet", "training")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="The gateway beside its peers, over a mock engine."
    )
    kinds = ("all", "side", "registry", "placement", "real", "fleet", "training", "profile")
    parser.add_argument("what", nargs="?", default="all", choices=kinds)
    parser.add_argument("--peers", default=",".join(USUAL), help=f"some of {','.join(PEERS)}")
    parser.add_argument(
        "--scenario", default="", help=f"some of {','.join(each.name for each in SCENARIOS)}; all if empty"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3, help="how often each peer is started to time it")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of nginx and the gateway, nothing written"
    )
    parser.add_argument("--force", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--cache-dir", type=Path, default=user_cache_path("loragate-bench"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--adapters", type=int, default=10_000, help="registry, placement: how many")
    parser.add_argument("--keys", type=int, default=10_000, help="registry: how many")
    parser.add_argument("--direct", help="real: URL of an engine; without it, loragate up with the demo")
    parser.add_argument("--direct-models", default="", help="real: the models' names on the engine, comma-separated")
    parser.add_argument("--direct-key")
    parser.add_argument("--gateway", help="real: URL of the gateway")
    parser.add_argument("--gateway-models", default="", help="real: the same models' names on the gateway")
    parser.add_argument("--gateway-key")
    parser.add_argument("--streams", type=int, default=16, help="real: concurrent streams")
    parser.add_argument("--max-tokens", type=int, default=128, help="real: tokens of each answer")
    parser.add_argument("--extra", default='{"ignore_eos": true}', help="real: JSON merged into each request")
    parser.add_argument("--seconds", type=float, default=300, help="fleet: how long")
    parser.add_argument("--training-python", help="training: an interpreter that has llamafactory")
    parser.add_argument("--callers", type=int, default=12, help="fleet: how many at once")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 0 done, 1 refused or failed with one sentence on stderr."""
    flags = parse(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupted)  # so that every peer is ended then too
    reason = busy()
    if reason and not (flags.force or flags.quick):
        print(f"{reason} Wait, or measure anyway with --force.", file=sys.stderr)
        return 1
    flags.cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="loragate-bench-") as scratch:
            runs = measure(flags, Place(flags.cache_dir.absolute(), Path(scratch)))
    except (PeerFailed, NoEnvironment, LoadFailed, RunFailed) as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; every peer was stopped and nothing was written.", file=sys.stderr)
        return 1
    if runs:
        print(publish(flags, runs))
    return 0


def measure(flags: argparse.Namespace, place: Place) -> list[Run]:
    """Run what was asked for; a profile is only printed."""
    scenarios = [each for each in SCENARIOS if not flags.scenario or each.name in flags.scenario.split(",")]
    closed = SCENARIOS[1]
    if flags.quick:
        scenarios, closed = list(shortened(scenarios)), shortened([closed])[0]
        flags.rounds, flags.starts = 1, 1
    if flags.what == "profile":
        print(profile(place, scenarios[0] if flags.scenario else closed))
        return []
    if flags.what == "fleet":
        from bench.fleet import fleet  # it needs the tests' packages

        return [_run("fleet", fleet(place, seconds=60 if flags.quick else flags.seconds, callers=flags.callers))]
    if flags.what == "training":
        python = Path(flags.training_python or os.environ.get("LORAGATE_TRAINING_PYTHON", ""))
        if not python.is_file():
            raise RunFailed("Name the interpreter of a training environment with --training-python.")
        steps, rounds = (10, 1) if flags.quick else (STEPS, flags.rounds)
        return [_run("training", asdict(training(python, place.scratch, rounds=rounds, steps=steps, say=print)))]
    if flags.what == "real":
        return [_run("real", asdict(_real(flags, place)))]
    runs = []
    if flags.what in ("all", "side"):
        names = [name for name in flags.peers.split(",") if not flags.quick or name in ("nginx", "gateway")]
        found = side_by_side(names, place, rounds=flags.rounds, starts=flags.starts, scenarios=scenarios)
        runs.append(_run("side_by_side", asdict(found), {name: peer_version(name) for name in names}))
    if flags.what in ("all", "registry"):
        filled = large_registry(place, adapters=flags.adapters, keys=flags.keys, rounds=flags.rounds, scenario=closed)
        runs.append(_run("registry", asdict(filled)))
    if flags.what in ("all", "placement"):
        shape = shape_of(flags.adapters, flags.quick)
        runs.append(_run("placement", asdict(placement(shape, place.scratch))))
    return runs


def _real(flags: argparse.Namespace, place: Place) -> Real:
    with _sides(flags) if flags.direct else demo_up(place) as (direct, gateway):
        return through_and_direct(
            direct,
            gateway,
            rounds=flags.rounds,
            streams=flags.streams,
            max_tokens=flags.max_tokens,
            extra=json.loads(flags.extra),
        )


def _sides(flags: argparse.Namespace) -> contextlib.nullcontext[tuple[Side, Side]]:
    direct = Side(flags.direct, flags.direct_key, tuple(flags.direct_models.split(",")))
    gateway = Side(flags.gateway, flags.gateway_key, tuple(flags.gateway_models.split(",")))
    return contextlib.nullcontext((direct, gateway))


def _run(kind: str, data: dict[str, Any], versions: dict[str, str] | None = None) -> Run:
    return Run(kind, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), machine(), data, versions or {})


def publish(flags: argparse.Namespace, runs: list[Run]) -> str:
    """Keep the raw figures in the cache and write the report from the newest of each kind; a quick run only prints."""
    if flags.quick:
        return render(runs)
    for run in runs:
        (flags.cache_dir / f"{run.kind}.json").write_text(json.dumps(asdict(run), indent=1))
    kept = [flags.cache_dir / f"{kind}.json" for kind in KINDS]
    text = render([Run(**json.loads(path.read_text())) for path in kept if path.exists()])
    flags.output.write_text(text)
    return text


def peer_version(name: str) -> str:
    """The peer's name with its version, as the report shows it."""
    if name == "nginx":
        said = subprocess.run(
            ["/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/bin", "nginx", "-v"], capture_output=True, text=True
        )
        return said.stderr.strip().rpartition(": ")[2].replace("/", " ")
    if name == "gateway":
        try:
            return f"**loragate {version('loragate')}, everything on**"
        except PackageNotFoundError:
            return "**loragate**"
    pinned = name.removesuffix("-1-thread")
    pins = (PINS / f"{pinned}.txt").read_text().splitlines()
    package = {"smg": "sglang-router"}.get(pinned, pinned)
    found = next(pin for pin in pins if pin.startswith(f"{package}==")).replace("==", " ")
    return found if name == pinned else f"{found}, one thread"


def _interrupted(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
