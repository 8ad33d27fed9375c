"""What a large registry costs: a gateway with an empty data directory beside one with 10,000 adapters and keys.

Knows the stores only through fill; both gateways take turns in one run.
"""

from __future__ import annotations

import contextlib
import sys
import time
import urllib.request
from dataclasses import dataclass

from bench.figures import Sample
from bench.fill import fill
from bench.load import Endpoint, chat_request
from bench.measure import memory
from bench.mock_engine import MODEL
from bench.peers import PeerFailed, Place, Running, start_gateway, start_mock
from bench.scenarios import Scenario, turn

USED = 64  # keys and adapters that the load goes over
SCRAPES = 5
LOAD_LIMIT_S = 300.0


@dataclass(slots=True)
class Registry:
    """Raw figures of both sides, `empty` and `full`."""

    adapters: int
    keys: int
    used: int
    samples: dict[str, list[Sample]]
    scrapes_ms: dict[str, list[float]]
    memory: dict[str, dict[str, float]]
    starts: dict[str, float]


def large_registry(place: Place, *, adapters: int, keys: int, rounds: int, scenario: Scenario) -> Registry:
    """Fill one data directory through the product's own stores, then let both gateways take turns at `scenario`."""
    data = place.scratch / "full-data"
    began = time.monotonic()
    pairs = fill(data, adapters, keys, USED)
    print(f"  filled with {adapters} adapters and {keys} keys in {time.monotonic() - began:.0f} s", file=sys.stderr)
    found = Registry(adapters, keys, len(pairs), {}, {}, {}, {})
    with contextlib.ExitStack() as stack:
        sides: dict[str, tuple[Running, tuple[bytes, ...]]] = {}
        for name, where in (("empty", place.scratch / "empty-data"), ("full", data)):
            mock = start_mock(place)  # one each: adapters are loaded into it
            stack.callback(mock.stop)
            peer = start_gateway(place, mock.endpoint.port, where, name)
            stack.callback(peer.stop)
            found.starts[name] = peer.ready_s
            asked = pairs if name == "full" else [(peer.endpoint.key or "", MODEL)]
            sides[name] = (
                peer,
                tuple(Endpoint(peer.endpoint.port, key).request(chat_request(model)) for key, model in asked),
            )
        _wait_loaded(sides["full"][0], pairs)
        for number in range(rounds + 1):  # the first one warms up
            for name in ("empty", "full") if number % 2 else ("full", "empty"):
                sample = turn(sides[name][0], scenario, sides[name][1])
                if number:
                    found.samples.setdefault(name, []).append(sample)
        for name, (peer, _) in sides.items():
            found.scrapes_ms[name] = [scrape_ms(peer.admin_port or 0) for _ in range(SCRAPES)]
            used = memory(peer.process.pid)
            found.memory[name] = {"rss_mb": used.rss_mb, "pss_mb": used.pss_mb}
    return found


def scrape_ms(port: int) -> float:
    """One GET /metrics on the admin port, in milliseconds."""
    began = time.perf_counter()
    with _opener().open(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        answer.read()
    return (time.perf_counter() - began) * 1e3


def _wait_loaded(peer: Running, pairs: list[tuple[str, str]]) -> None:
    """Until every adapter that will be asked for answers; PeerFailed after LOAD_LIMIT_S."""
    deadline = time.monotonic() + LOAD_LIMIT_S
    for key, model in pairs:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        url = f"http://127.0.0.1:{peer.endpoint.port}/v1/chat/completions"
        while True:
            request = urllib.request.Request(url, chat_request(model), headers, method="POST")
            try:
                _opener().open(request, timeout=30).close()
                break
            except OSError as exc:  # HTTPError too
                if time.monotonic() > deadline:
                    raise PeerFailed(f"Adapter {model} did not answer within {LOAD_LIMIT_S:.0f} s: {exc}") from None
                time.sleep(0.2)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
