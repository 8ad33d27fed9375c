"""What the end-to-end tests of the data plane share: requests of every route, a quiet gateway, and the balance.

A quiet gateway sends no probes, so that an engine sees exactly what callers caused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.v1.routing import ReplicaState
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
MODEL = "demo-base"
SAID = "one two three four five"
LARGE = 10**9  # a daily budget that nobody reaches, and that makes the ledger keep count

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def ask(path: str, /, said: str = SAID, **fields: Any) -> dict[str, Any]:
    """A small request of that route; fields: more of them, or others."""
    user = [{"role": "user", "content": said}]
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": user},
        COMPLETIONS: {"prompt": said},
        EMBEDDINGS: {"input": said},
        RESPONSES: {"input": said},
        MESSAGES: {"messages": user, "max_tokens": 64},
        COUNT: {"messages": user},
    }
    return {"model": MODEL, **bodies[path], **fields}


ROUTES = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES, COUNT)
STREAMS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)


@asynccontextmanager
async def quiet(data_dir: Path, engines: Sequence[FakeVLLM], /, **settings: Any) -> AsyncIterator[Running]:
    """A gateway that asks its engines once, unseen and whatever they are scripted to do, and never again."""
    settings["health"] = {"probe_interval_s": 3600, **settings.get("health", {})}
    with ExitStack() as start:
        for engine in engines:
            start.enter_context(engine.undisturbed())
        async with running(data_dir, engines, **settings) as gateway:
            proxy = gateway.started.gateway.proxy
            async with asyncio.timeout(30):
                while not all(replica.state is ReplicaState.READY for replica in proxy.fleet.replicas):
                    await asyncio.sleep(0.002)
            start.close()
            yield gateway


async def counted(gateway: Running, **grant: Any) -> str:
    """A key whose use the ledger keeps count of, so that `at_rest` can compare it with what was recorded."""
    return await gateway.key(**{"daily_tokens": LARGE, **grant})


async def at_rest(gateway: Running) -> None:
    """Until nothing is held any more, then: what the ledger charged is what was recorded and counted."""
    proxy = gateway.started.gateway.proxy

    def held() -> dict[str, object]:
        accounts = proxy.ledger._accounts.values()
        found = {
            "in flight": proxy.admission.in_flight,
            "queued": len([ticket for ticket in proxy.admission._queue if not ticket.left]),
            "outstanding": sum(replica.outstanding for replica in proxy.fleet.replicas),
            "upstream calls": sum(replica.upstream.in_flight for replica in proxy.fleet.replicas),
            "concurrency": sum(account.active for account in accounts),
        }
        return {name: count for name, count in found.items() if count}

    try:
        async with asyncio.timeout(30):
            while held():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never given back: {held()}") from None
    keys = {id: key for id, key in proxy.snapshot.keys.items() if key.limits.daily_tokens is not None}
    charged = {id: proxy.ledger._account("key", id, key.limits, proxy.clock()).day_tokens for id, key in keys.items()}
    recorded = {row["key"]: row["total_tokens"] for row in await usage(gateway, group_by="key")}
    assert charged == {id: recorded.get(id, 0) for id in charged}


async def usage(gateway: Running, **query: str) -> list[dict[str, Any]]:
    """GET /admin/v1/usage."""
    async with gateway.admin() as http:
        answer = await http.get("/admin/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


async def page(gateway: Running) -> Page:
    """Every sample of /metrics."""
    async with gateway.admin() as http:
        text = (await http.get("/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(page: Page, name: str, **labels: str) -> float:
    """The sum of a counter's samples that have these labels; without `_total` and our prefix."""
    wanted = set(labels.items())
    return sum(value for (found, its), value in page.items() if found == f"loragate_{name}_total" and wanted <= {*its})


def events(body: bytes) -> list[tuple[str, Any]]:
    """(type, data) of every event of a stream; data parsed where it is JSON."""
    found = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        name, data = "", ""
        for line in block.decode().splitlines():
            field, _, value = line.partition(": ")
            name = value if field == "event" else name
            data = value if field == "data" else data
        if data or name:
            found.append((name, json.loads(data) if data.startswith("{") else data))
    return found


def error_of(path: str, document: Any) -> dict[str, Any]:
    """The error object, its envelope checked: OpenAI's with all four keys, Anthropic's on its two routes."""
    if path.startswith(MESSAGES):
        assert document.keys() == {"type", "error"}, document
        assert document["type"] == "error"
        assert document["error"].keys() == {"type", "message"}
    else:
        assert document.keys() == {"error"}, document
        assert document["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = document["error"]
    assert error["message"]
    return error
