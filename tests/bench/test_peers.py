"""Peers are started, asked and ended, and one that does not start says why."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from bench.load import Endpoint
from bench.measure import tree
from bench.peers import PeerFailed, Place, Running, free_port, launch, start_mock, wait_ready
from bench.scenarios import SCENARIOS, shortened, side_by_side, turn


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path)


def test_mock_starts_serves_and_leaves_nothing_behind(place: Place) -> None:
    mock = start_mock(place)
    try:
        assert mock.ready_s > 0
        sample = turn(mock, shortened(SCENARIOS)[0])
        assert sample["failed"] == 0
        assert sample["cpu_us"] > 0
        assert sample["latency_p99"] >= sample["latency_p50"] > 0
    finally:
        mock.stop()
    assert tree(mock.process.pid) == []


def test_children_of_a_peer_are_ended_too(place: Place) -> None:
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = launch("parent", [sys.executable, "-c", code], place)
    peer = Running("parent", process, Endpoint(1))
    while len(family := tree(process.pid)) < 2:
        assert process.poll() is None
    peer.stop()
    assert not any(psutil.pid_exists(pid) for pid in family)


def test_peer_that_dies_is_reported_with_its_last_words(place: Place) -> None:
    process = launch("broken", [sys.executable, "-c", "raise SystemExit('no such flag')"], place)
    with pytest.raises(PeerFailed, match="no such flag"):
        wait_ready(Running("broken", process, Endpoint(free_port())), place)
    assert process.poll() is not None


def test_side_by_side_gives_every_peer_every_turn(place: Place) -> None:
    if shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin") is None:
        pytest.skip("nginx is not installed; apt-get install nginx-light")
    scenarios = [each for each in shortened(SCENARIOS) if each.name in ("c1", "rate500")]
    found = side_by_side(["nginx"], place, rounds=1, starts=1, scenarios=scenarios)
    assert set(found.samples) == {"c1", "rate500"}
    for turns in found.samples.values():
        assert set(turns) == {"direct", "nginx"}
        assert all(sample["failed"] == 0 for rounds in turns.values() for sample in rounds)
    assert found.memory["nginx"]["rss_mb"] > 0
    assert len(found.starts["nginx"]) == 1
