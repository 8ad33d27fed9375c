"""An operator's day on real vLLM: adapters come, change and go while callers stream; keys; an engine that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.local.process import tree
from tests.e2e.conftest import Live
from tests.e2e.test_demo_answers import pairs
from tests.e2e.variants import copied, opposite, wrong_rank
from training.demo import ADAPTERS, BASE_ID

pytestmark = pytest.mark.engine
CUSTOMER = "customer-service"
RESTART_S = 240  # vLLM's start is half a minute; a machine under load takes several times that


async def cli(live: Live, *words: str, code: int = 0) -> dict[str, Any]:
    """One CLI command with --json; its document."""
    done = await asyncio.to_thread(live.loragate, *words, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def sdk(live: Live, key: str | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=live.url, api_key=key or live.api_key, timeout=100, max_retries=0)


async def say(client: openai.AsyncOpenAI, model: str, question: str) -> str:
    """The whole text of one stream, which must end as streams end."""
    text, ended = "", None
    async for chunk in await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48, stream=True
    ):
        text += chunk.choices[0].delta.content or ""
        ended = chunk.choices[0].finish_reason or ended
    assert ended in ("stop", "length")
    return text


@dataclass
class Traffic:
    """What the streams in the background have seen: how many ended well, and each that did not."""

    done: int = 0
    wrong: list[object] = field(default_factory=list)


@contextlib.asynccontextmanager
async def traffic(live: Live, streams: int = 8) -> AsyncIterator[Traffic]:
    """Streams without a pause, over the demo's adapters in turn; each answer is compared with the training data's."""
    seen, stop = Traffic(), asyncio.Event()

    async def one(at: int) -> None:
        name = ADAPTERS[at % len(ADAPTERS)]
        turns = pairs(name)[:6]
        while not stop.is_set():
            question, answer = turns[(at + seen.done) % len(turns)]
            try:
                text = await say(client, name, question)
            except (openai.OpenAIError, AssertionError) as exc:
                seen.wrong.append(exc)
            else:
                seen.done += 1
                if text != answer:
                    seen.wrong.append((name, question, text))

    async with sdk(live) as client:
        running = [asyncio.create_task(one(at)) for at in range(streams)]
        try:
            yield seen
        finally:
            stop.set()
            await asyncio.gather(*running)


async def until(condition: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(RESTART_S):
        while not condition():
            await asyncio.sleep(0.1)
    assert condition(), what


def readiness(live: Live) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(live.url.removesuffix("/v1") + "/readyz", trust_env=False)
    return answer.status_code, answer.json()


def shelf(live: Live) -> set[str]:
    return {path.name for path in (live.data_dir / "adapters").iterdir()}


async def test_an_adapter_comes_changes_and_goes_under_traffic(live_gateway: Live, tmp_path: Path) -> None:
    live, name = live_gateway, "night-desk"
    question, answer = pairs(CUSTOMER)[0]
    same, other = copied(CUSTOMER, tmp_path / "same"), opposite(CUSTOMER, tmp_path / "other")
    before = shelf(live)
    async with sdk(live) as client, traffic(live) as seen:
        assert (await cli(live, "adapters", "check", str(same)))["ok"] is True
        made = await cli(live, "adapters", "register", str(same), "--name", name, "--promote")
        first = made["live"]
        assert await say(client, name, question) == answer
        changed = await cli(live, "adapters", "register", str(other), "--name", name, "--promote")
        second = changed["live"]
        assert (changed["previous"], len(changed["versions"])) == (first, 2)
        turned = await say(client, name, question)
        assert turned != answer
        assert await say(client, f"{name}@{first}", question) == answer
        await cli(live, "adapters", "rollback", name)
        assert await say(client, name, question) == answer
        promoted = await cli(live, "adapters", "promote", name, second)
        assert (promoted["live"], await say(client, name, question)) == (second, turned)
        states = {version["state"]: version["replicas"][0]["state"] for version in promoted["versions"]}
        assert states["live"] == "resident"  # the one before may have made room: five versions, four slots
        gone = await cli(live, "adapters", "remove", name)
        assert set(gone["removed"]) == {first, second}
        for model in (name, f"{name}@{first}"):
            with pytest.raises(openai.NotFoundError):
                await say(client, model, question)
        done = seen.done
        await until(lambda: seen.done > done, "the traffic goes on")
    assert seen.wrong == []
    assert seen.done > len(ADAPTERS)
    await until(lambda: shelf(live) == before, "the files go when the requests of before are over")


async def test_a_rejected_folder_leaves_nothing_behind(live_gateway: Live, tmp_path: Path) -> None:
    live = live_gateway
    before = shelf(live)
    bad = wrong_rank(CUSTOMER, tmp_path / "bad")
    refused = await cli(live, "adapters", "register", str(bad), "--name", "bad", "--promote", code=1)
    assert "rank" in refused["error"]["message"]
    assert refused["error"]["message"].count(". ") <= 2, "a sentence or two"
    for words in (("register", str(tmp_path / "nowhere"), "--name", "bad"), ("register", str(bad), "--name", BASE_ID)):
        await cli(live, "adapters", *words, code=1)
    await cli(live, "adapters", "show", "bad", code=1)
    listed = await cli(live, "adapters", "list")
    assert "bad" not in {adapter["name"] for adapter in listed["data"]}
    assert shelf(live) == before


async def test_keys_open_and_close_at_once(live_gateway: Live) -> None:
    live = live_gateway
    made = await cli(live, "keys", "create", "--name", "shop", "--model", CUSTOMER, "--rpm", "600", "--expires", "1d")
    question, answer = pairs(CUSTOMER)[0]
    async with sdk(live, made["key"]) as client:
        assert await say(client, CUSTOMER, question) == answer
        assert [model.id async for model in client.models.list()] == [CUSTOMER]
        with pytest.raises(openai.NotFoundError):
            await say(client, "financial-qa", question)
    kept = await cli(live, "keys", "rotate", made["id"], "--grace", "1h")
    now = await cli(live, "keys", "rotate", made["id"], "--grace", "0s")
    for key, good in ((made["key"], False), (kept["key"], False), (now["key"], True)):
        async with sdk(live, key) as client:
            if good:
                assert await say(client, CUSTOMER, question) == answer
            else:
                with pytest.raises(openai.AuthenticationError):
                    await say(client, CUSTOMER, question)
    used = await cli(live, "usage", "--key", made["id"], "--by", "model")
    assert [(row["model"], row["requests"]) for row in used["data"]] == [(CUSTOMER, 2)]
    assert used["data"][0]["completion_tokens"] > 0
    assert (await cli(live, "keys", "revoke", made["id"]))["revoked_at"] is not None
    async with sdk(live, now["key"]) as client:
        with pytest.raises(openai.AuthenticationError):
            await say(client, CUSTOMER, question)
    listed = await cli(live, "keys", "list")
    assert all("key" not in row or row["key"] is None for row in listed["data"])


async def test_status_tells_how_things_are(live_gateway: Live) -> None:
    status = await cli(live_gateway, "status")
    assert (status["ready"], status["base"], status["engines"][0]["state"]) == (True, BASE_ID, "ready")
    assert status["adapters"]["live"] >= len(ADAPTERS)


async def test_a_killed_engine_comes_back_with_every_adapter(live_gateway: Live, tmp_path: Path) -> None:
    live, extra = live_gateway, "night-desk"
    question, answer = pairs(CUSTOMER)[0]
    await cli(live, "adapters", "register", str(copied(CUSTOMER, tmp_path / "same")), "--name", extra, "--promote")
    engine = json.loads((live.data_dir / "engine.pid").read_text())["pid"]
    tries = (await cli(live, "status"))["engines"][0]["restarts"]
    os.kill(engine, signal.SIGKILL)
    await until(lambda: readiness(live)[0] == 503, "readiness is red")
    status, body = readiness(live)
    assert (status, body["ready"], len(body["reasons"])) == (503, False, 1)
    assert body["reasons"][0].startswith("engine http")
    async with sdk(live) as client:
        with pytest.raises(openai.InternalServerError) as refusal:
            await say(client, CUSTOMER, question)
        assert refusal.value.status_code in (502, 503)
        told = (await cli(live, "status"))["engines"][0]
        assert told["state"] in ("restarting", "starting")
        await until(lambda: readiness(live)[0] == 200, "readiness is green again")
        assert tree(engine) == [], "nothing of the killed engine lives on"
        for name in ADAPTERS:
            asked, told_ = pairs(name)[0]
            assert await say(client, name, asked) == told_
        assert await say(client, extra, question) == answer
    assert (await cli(live, "status"))["engines"][0]["restarts"] == tries + 1
    await cli(live, "adapters", "remove", extra)
