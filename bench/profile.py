"""Where the gateway's CPU goes: py-spy samples it under load, and its stacks are summed by function."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from bench.environments import environment
from bench.load import Plan
from bench.peers import Place, start_gateway, start_mock
from bench.report import table
from bench.scenarios import Scenario, turn

SITE = re.compile(r"\(.*site-packages/|\(.*/lib/python[\d.]+/|\((?=[^/])")


def profile(place: Place, scenario: Scenario, seconds: float = 8.0) -> str:
    """Sample the gateway at 500 Hz while `scenario` runs; a Markdown table of own and total shares."""
    spy = environment("profile", place.cache) / "py-spy"
    stacks = place.scratch / "stacks.txt"
    mock = start_mock(place)
    try:
        gateway = start_gateway(place, mock.endpoint.port)
        try:
            turn(gateway, scenario)
            command = [str(spy), "record", "--pid", str(gateway.process.pid), "--duration", str(int(seconds))]
            command += ["--rate", "500", "--format", "raw", "--nonblocking", "--output", str(stacks)]
            with (place.scratch / "py-spy.log").open("wb") as log:
                spying = subprocess.Popen(command, stdout=log, stderr=log)
                plan: Plan = replace(scenario.plan, seconds=seconds + 1, limit_s=seconds + 60)
                turn(gateway, replace(scenario, plan=plan))
                spying.wait()
        finally:
            gateway.stop()
    finally:
        mock.stop()
    return summarise(stacks.read_text().splitlines())


def summarise(lines: Iterable[str], top: int = 40) -> str:
    """`frame;frame;frame count` lines as a table: share of samples on top of the stack, and anywhere in it."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [SITE.sub("(", frame) for frame in stack.split(";")]
        own[_function(frames[-1])] += int(count)
        for frame in {_function(each) for each in frames}:
            total[frame] += int(count)
    samples = sum(own.values()) or 1
    rows = [
        [f"`{name}`", f"{own[name] / samples:.1%}", f"{count / samples:.1%}"] for name, count in total.most_common()
    ]
    rows.sort(key=lambda row: -float(row[1][:-1]))
    return table(["function", "own", "with what it calls"], rows[:top])


def _function(frame: str) -> str:
    """Without the line number: lines of one function are one."""
    return re.sub(r":\d+\)$", ")", frame)
