"""The worker's client of a gateway, against a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import AdapterRejected
from adapters.http import open_http
from tests import ports
from tests.fake_vllm import Fault
from tests.gateway.tiny_lora import tiny_lora
from tests.scripted_server import Peer, ScriptedServer
from tests.training.gateways import World, world
from training.errors import GatewayAway
from training.gatewayclient import Address, Gateway, GatewayRefused, open_gateway

HI: dict[str, Any] = {"model": "demo-base", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_status_says_what_is_served(up: World) -> None:
    assert (await up.gateway.status())["base"] == "demo-base"


@pytest.mark.parametrize("upload", [False, True])
async def test_a_folder_becomes_a_version_however_it_gets_there(up: World, upload: bool) -> None:
    folder = tiny_lora(up.folder / "adapter")
    version = await up.gateway.register(folder, "shop", notes="of a test", upload=upload)
    assert await up.gateway.register(folder, "shop", upload=upload) == version, "the same content, the same version"
    found = await up.gateway.adapter("shop")
    assert found is not None
    assert [(each["version"], each["notes"]) for each in found["versions"]] == [(version, "of a test")]
    assert found["live"] is None


async def test_promote_and_canary_move_the_name(up: World) -> None:
    first, second = await up.version("shop", 1, promote=True), await up.version("shop", 2)
    split = await up.gateway.canary("shop", second, 10, why="passed the gate")
    assert (split["live"], split["canary"]["version"], split["canary"]["percent"]) == (first, second, 10)
    moved = await up.gateway.promote("shop", second)
    assert (moved["live"], moved["canary"]) == (second, None)


async def test_there_is_no_such_adapter(up: World) -> None:
    assert await up.gateway.adapter("shop") is None


async def test_a_folder_that_cannot_be_served_is_refused_before_anything_is_sent(up: World) -> None:
    folder = tiny_lora(up.folder / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterRejected):
        await up.gateway.register(folder, "shop")


async def test_it_makes_itself_one_key_for_inference_and_revokes_it(up: World) -> None:
    await asyncio.gather(*(up.gateway.chat(HI) for _ in range(4)))

    async def keys() -> list[dict[str, Any]]:
        async with up.running.admin() as http:
            found: list[dict[str, Any]] = (await http.get("/admin/v1/keys")).json()["data"]
            return found

    (made,) = await keys()
    assert (made["name"], made["scopes"], made["revoked_at"]) == ("training", ["inference"], None)
    assert made["expires_at"] is not None
    await up.gateway.close()
    assert all(key["revoked_at"] is not None for key in await keys())


async def test_whoever_asks_v1_is_told_which_version_answered(up: World) -> None:
    version = await up.version("shop", 1)
    reply = await up.gateway.chat({**HI, "model": f"shop@{version}"})
    assert reply.served == f"shop@{version}"
    assert reply.document["choices"][0]["message"]["content"] == f"shop@{version}: Hi"
    tokens = await up.gateway.completions({"model": "demo-base", "prompt": [1, 2, 3], "prompt_logprobs": 0})
    assert len(tokens.document["choices"][0]["prompt_logprobs"]) == 3


async def test_a_refusal_says_why(up: World) -> None:
    with pytest.raises(GatewayRefused) as refused:
        await up.gateway.chat({**HI, "model": "nobody"})
    assert (refused.value.answered, refused.value.said) == (404, "model_not_found")
    with pytest.raises(GatewayRefused) as refused:
        await up.gateway.chat({**HI, "frobnicate": 1})
    assert (refused.value.answered, refused.value.param) == (400, "frobnicate")


async def test_a_wrong_key_is_said_plainly(up: World) -> None:
    async with open_gateway(Address(up.running.url, up.running.admin_url, "lg-wrong")) as gateway:
        with pytest.raises(GatewayRefused, match="does not accept this key"):
            await gateway.status()


async def test_a_busy_gateway_is_asked_again_when_it_says_so(up: World) -> None:
    up.engine.script(Fault.STATUS, status=503, times=2, headers=[("retry-after", "3")])
    assert (await up.gateway.chat(HI)).served == "demo-base"
    assert all(1 <= wait <= 120 for wait in up.waits)


async def test_nobody_answers(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{ports.unused()}"
    async with open_gateway(Address(nowhere, nowhere, "x")) as gateway:
        with pytest.raises(GatewayAway, match="does not answer"):
            await gateway.status()


@asynccontextmanager
async def answering(*replies: bytes, patience_s: float = 60.0) -> AsyncIterator[tuple[Gateway, list[float], list[int]]]:
    """A client of a server that gives these replies in turn, the last one for ever; waits, and how often asked."""
    waits: list[float] = []
    asked = [0]

    async def play(peer: Peer) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                await peer.request()
                await peer.send(replies[min(asked[0], len(replies) - 1)])
                asked[0] += 1

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with ScriptedServer(play) as server, open_http() as http:
        url = f"http://127.0.0.1:{server.port}"
        yield Gateway(http, Address(url, url, "key"), sleep=sleep, patience_s=patience_s), waits, asked


def said(status: int, *headers: str, body: bytes = b'{"error":{"message":"Busy.","code":"overloaded"}}') -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


FINE = said(200, body=b'{"base":"demo-base"}')


@pytest.mark.parametrize(
    ("busy", "waited"),
    [
        ([said(503, "retry-after: 7"), said(429, "retry-after: 2")], [7, 2]),
        ([said(503)], [2]),
        ([said(429, "retry-after: 100000")], [120]),
        ([said(429, "retry-after: soon")], [2]),
        ([said(502), said(504)], [1, 1]),
    ],
)
async def test_it_waits_as_it_is_told(busy: list[bytes], waited: list[float]) -> None:
    async with answering(*busy, FINE, patience_s=200) as (gateway, waits, _):
        assert (await gateway.status())["base"] == "demo-base"
    assert waits == waited


async def test_it_does_not_wait_for_ever() -> None:
    async with answering(said(503, "retry-after: 20"), patience_s=50) as (gateway, waits, asked):
        with pytest.raises(GatewayAway, match=r"too busy for 40 s: Busy\."):
            await gateway.status()
    assert (waits, asked) == ([20, 20], [3])


@pytest.mark.parametrize("reply", [said(429, "x-should-retry: false"), said(500), said(404)])
async def test_what_cannot_get_better_is_not_asked_again(reply: bytes) -> None:
    async with answering(reply) as (gateway, waits, asked):
        with pytest.raises(GatewayRefused, match=r"Busy\."):
            await gateway.status()
    assert (waits, asked) == ([], [1])


async def test_an_engine_that_fails_three_times_has_failed() -> None:
    async with answering(said(502)) as (gateway, waits, asked):
        with pytest.raises(GatewayRefused):
            await gateway.status()
    assert (waits, asked) == ([1, 1], [3])


@pytest.mark.parametrize(("drops", "answered"), [(1, True), (2, True), (3, False)])
async def test_a_connection_that_breaks_is_tried_again(drops: int, answered: bool) -> None:
    waits: list[float] = []

    async def play(peer: Peer) -> None:
        await peer.request()
        if peer.number < drops:
            peer.reset()
        else:
            await peer.send(FINE)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with ScriptedServer(play) as server, open_http() as http:
        url = f"http://127.0.0.1:{server.port}"
        gateway = Gateway(http, Address(url, url, "key"), sleep=sleep)
        if answered:
            assert await gateway.status() == {"base": "demo-base"}
        else:
            with pytest.raises(GatewayAway, match="does not answer"):
                await gateway.status()
    assert waits == [1] * min(drops, 2)


async def test_something_else_that_answers_is_no_gateway() -> None:
    async with answering(said(200, body=b"<html>")) as (gateway, _, _asked):
        with pytest.raises(GatewayRefused, match="is not a loragate gateway"):
            await gateway.status()


async def test_tokens_of_a_conversation_are_the_engines() -> None:
    async with answering(said(200, body=b'{"tokens":[1,2,3]}')) as (gateway, _, _asked):
        assert await gateway.render(HI["messages"], [{"type": "function"}], {"enable_thinking": False}) == (1, 2, 3)
