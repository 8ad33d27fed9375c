"""Tokens per second of a real engine, directly and through the gateway, in alternating rounds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from bench.figures import Sample
from bench.load import Endpoint, Plan, run_load
from bench.scenarios import figures


@dataclass(frozen=True, slots=True)
class Side:
    """Where to ask, with what key, and what the models are called there."""

    url: str
    key: str | None
    models: tuple[str, ...]

    def endpoint(self) -> Endpoint:
        parts = urlsplit(self.url)
        return Endpoint(parts.port or 80, self.key, parts.hostname or "127.0.0.1")


@dataclass(slots=True)
class Real:
    """Raw figures of both sides."""

    models: tuple[str, ...]
    streams: int
    max_tokens: int
    samples: dict[str, list[Sample]]


def stream_body(model: str, number: int, max_tokens: int, extra: dict[str, Any]) -> bytes:
    """A streamed chat request whose prompt differs by `number`, so that no prefix cache answers for it."""
    messages = [{"role": "user", "content": f"Question {number}: how do I return a parcel?"}]
    asked = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0.0, "stream": True}
    return json.dumps({**asked, "stream_options": {"include_usage": True}, **extra}).encode()


def through_and_direct(
    direct: Side, gateway: Side, *, rounds: int, streams: int, max_tokens: int, extra: dict[str, Any]
) -> Real:
    """Alternate both sides for `rounds` after one warm-up round; every stream keeps its own connection.

    Each round asks the same questions of both sides; tokens are those that the engine's usage reports.
    """
    plan = Plan(streams, streams=streams * 4, limit_s=300)
    found = Real(gateway.models, streams, max_tokens, {"direct": [], "gateway": []})
    sides = {"direct": direct, "gateway": gateway}
    for number in range(rounds + 1):
        for name in ("direct", "gateway") if number % 2 else ("gateway", "direct"):
            side = sides[name]
            requests = _requests(side, number, streams * 4, max_tokens, extra)
            sample = figures(run_load(side.endpoint(), requests, replace(plan, seed=number), streaming=True))
            if number:
                found.samples[name].append(sample)
                print(f"  round {number}, {name}: {sample.get('tokens_per_s', 0):.0f} tokens/s", file=sys.stderr)
    return found


def _requests(side: Side, number: int, count: int, max_tokens: int, extra: dict[str, Any]) -> tuple[bytes, ...]:
    names: Sequence[str] = side.models
    endpoint = side.endpoint()
    return tuple(
        endpoint.request(stream_body(names[each % len(names)], number * count + each, max_tokens, extra))
        for each in range(count)
    )
