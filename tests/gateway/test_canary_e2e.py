"""A canary in a whole gateway: who gets it, what ends it, and what does not disturb it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway import child
from tests.gateway.plane import CHAT, MESSAGES, RESPONSES, ask, events
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

ADAPTERS = "/admin/v1/adapters"
NAME = "support"


@dataclass
class Trying:
    """A gateway whose `support` has a live version and others that can be tried."""

    gateway: Running
    engine: FakeVLLM
    http: httpx.AsyncClient
    admin: httpx.AsyncClient
    live: str
    others: list[str]

    async def canary(self, percent: float, version: str | None = None, **more: Any) -> dict[str, Any]:
        body = {"version": version or self.others[0], "percent": percent, **more}
        answer = await self.admin.post(f"{ADAPTERS}/{NAME}/canary", json=body)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def shown(self) -> dict[str, Any]:
        document: dict[str, Any] = (await self.admin.get(f"{ADAPTERS}/{NAME}")).json()
        return document

    async def version(
        self, user: str = "", path: str = CHAT, http: httpx.AsyncClient | None = None, **more: Any
    ) -> str:
        """The version that answered, as the header says it; the answer's `model` and its text must say the same."""
        if user:
            more["user"] = user
        answer = await (http or self.http).post(path, json=ask(path, model=NAME, **more))
        assert answer.status_code == 200, answer.text
        named = answer.headers["x-loragate-model"]
        if path == CHAT and not more.get("stream"):
            assert answer.json()["model"] == named
            assert named in answer.json()["choices"][0]["message"]["content"], "the weights that answered"
        name, _, version = named.partition("@")
        assert name == NAME
        return version

    async def versions(self, users: Iterator[str] | list[str], **more: Any) -> dict[str, str]:
        """user → version that answered, eight at a time."""
        found: dict[str, str] = {}
        several = asyncio.Semaphore(8)

        async def one(user: str) -> None:
            async with several:
                found[user] = await self.version(user, **more)

        await asyncio.gather(*(one(user) for user in users))
        return found

    async def traffic(self, users: int, **more: Any) -> None:
        """One request of each user, whatever comes of it, one after the other."""
        for n in range(users):
            await self.http.post(CHAT, json=ask(CHAT, model=NAME, user=f"u{n}", **more))

    async def until_over(self) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while (document := await self.shown())["canary"] is not None:
                await asyncio.sleep(0.05)
        return document


@asynccontextmanager
async def trying(tmp_path: Path, versions: int = 2, engine: FakeVLLM | None = None) -> AsyncIterator[Trying]:
    async with (
        engine or FakeVLLM() as engine,
        running(tmp_path / "data", [engine]) as gateway,
        await gateway.http() as http,
        gateway.admin() as admin,
    ):
        names = []
        for n in range(versions):
            folder = tiny_lora(tmp_path / f"lora-{n}", n + 1)
            body = {"source": str(folder), "name": NAME, "promote": n == 0}
            made = (await admin.post(ADAPTERS, json=body)).json()
            names += [v["version"] for v in made["versions"] if v["version"] not in names]
        yield Trying(gateway, engine, http, admin, names[0], names[1:])


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Trying]:
    async with trying(tmp_path) as opened:
        yield opened


def users(count: int) -> list[str]:
    return [f"u{n}" for n in range(count)]


# Who gets it --------------------------------------------------------------------------------------------------


async def test_the_same_caller_always_meets_the_same_version(room: Trying) -> None:
    assert set((await room.versions(users(20))).values()) == {room.live}
    document = await room.canary(30, why="better answers, they say")
    assert (document["live"], document["canary"]["version"]) == (room.live, room.others[0])
    first = await room.versions(users(300))
    share = sum(version == room.others[0] for version in first.values()) / 300
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 300) ** 0.5
    assert await room.versions(users(60), safety_identifier="") == {user: first[user] for user in users(60)}
    as_stream = await room.versions(users(40), stream=True)
    assert as_stream == {user: first[user] for user in users(40)}
    by_other_field = {user: await room.version(safety_identifier=user) for user in users(40)}
    assert by_other_field == {user: first[user] for user in users(40)}
    by_messages = {u: await room.version(path=MESSAGES, metadata={"user_id": u}) for u in users(40)}
    assert by_messages == {user: first[user] for user in users(40)}
    by_responses = {user: await room.version(user, path=RESPONSES) for user in users(40)}
    assert by_responses == {user: first[user] for user in users(40)}


async def test_without_a_user_the_key_decides(room: Trying) -> None:
    await room.canary(50)
    seen = set()
    for _ in range(16):
        async with await room.gateway.http(await room.gateway.key()) as http:
            met = {await room.version(http=http) for _ in range(4)}
        assert len(met) == 1
        seen |= met
    assert seen == {room.live, room.others[0]}


async def test_growing_the_share_moves_nobody_back(room: Trying) -> None:
    met: set[str] = set()
    for percent in (10, 40, 100):
        await room.canary(percent)
        now = {user for user, version in (await room.versions(users(80))).items() if version == room.others[0]}
        assert met <= now
        met = now
    assert met == set(users(80))
    assert (await room.admin.post(f"{ADAPTERS}/{NAME}/canary", json={"percent": 0})).json()["canary"] is None
    assert set((await room.versions(users(20))).values()) == {room.live}


async def test_a_version_by_its_digits_is_that_version(room: Trying) -> None:
    await room.canary(100)
    for version in (room.live, room.others[0]):
        asked = f"{NAME}@{version}"
        answer = await room.http.post(CHAT, json=ask(CHAT, model=asked, user="u1"))
        assert answer.headers["x-loragate-model"] == asked
    canary = (await room.shown())["canary"]
    assert (canary["live"]["requests"], canary["canary"]["requests"]) == (0, 0)


async def test_rights_and_limits_are_those_of_the_name(room: Trying) -> None:
    before = (await room.http.get("/v1/models")).json()
    await room.canary(50)
    assert (await room.http.get("/v1/models")).json() == before
    async with await room.gateway.http(await room.gateway.key(models=frozenset({"demo-base"}))) as stranger:
        assert (await stranger.post(CHAT, json=ask(CHAT, model=NAME))).status_code == 404
    async with await room.gateway.http(await room.gateway.key(models=frozenset({NAME}), rpm=8)) as limited:
        codes = [(await limited.post(CHAT, json=ask(CHAT, model=NAME, user=u))).status_code for u in users(10)]
    assert codes == [200] * 8 + [429] * 2
    seen = (await room.shown())["canary"]
    assert seen["live"]["requests"] + seen["canary"]["requests"] == 8
    assert seen["live"]["refused"] + seen["canary"]["refused"] == 2
    assert min(seen["live"]["requests"], seen["canary"]["requests"]) > 0


async def test_what_both_arms_did_is_shown(room: Trying) -> None:
    await room.canary(50, rules={"min_requests": 500})
    await room.versions(users(30), stream=True)
    await room.versions(users(10), max_tokens=2)
    canary = (await room.shown())["canary"]
    assert canary["rules"] == {
        "min_requests": 500, "max_error_increase": 0.02, "max_latency_ratio": 1.5, "max_finish_change": 0.15,
    }  # fmt: skip
    arms = canary["live"], canary["canary"]
    assert sum(arm["requests"] for arm in arms) == 40
    assert sum(arm["finish_reasons"].get("stop", 0) for arm in arms) == 30
    assert sum(arm["finish_reasons"].get("length", 0) for arm in arms) == 10
    assert all(arm["completion_tokens"] > 0 and arm["first_token_s"] > 0 for arm in arms)
    assert canary["standing"].startswith("nothing is compared yet: ")
    metric = room.gateway.metric
    assert await metric("loragate_canary_percent", model=NAME) == 50
    counted = [await metric("loragate_canary_requests_total", arm=arm, outcome="ok") for arm in ("live", "canary")]
    assert counted == [arm["requests"] for arm in arms]


# What ends it -------------------------------------------------------------------------------------------------


async def test_a_failing_canary_ends_by_itself_and_says_why(room: Trying) -> None:
    await room.canary(50, rules={"min_requests": 20})
    room.engine.script(Fault.STATUS, times=None, model=f"{NAME}@{room.others[0]}")
    await room.traffic(70)
    replica = room.gateway.started.gateway.proxy.fleet.replicas[0]
    assert replica.ejections == 0, "what one adapter does wrong does not eject the engine of all"
    document = await room.until_over()
    assert document["live"] == room.live
    (event,) = (await room.gateway.started.gateway.adapters.history(NAME, before=None, limit=1))[0]
    assert (event.what, event.version, event.by) == ("canary ended", room.others[0], "gateway")
    assert "canary requests failed (100 %), 0 of " in event.why
    assert set((await room.versions(users(30))).values()) == {room.live}
    assert await room.gateway.metric("loragate_canary_ended_total", reason="errors") == 1
    assert await room.gateway.metric("loragate_canary_percent", model=NAME) == 0
    assert await room.gateway.metric("loragate_canary_requests_total", arm="canary", outcome="error") > 20


async def test_broken_streams_are_failures_too(room: Trying) -> None:
    await room.canary(50, rules={"min_requests": 20})
    room.engine.script(Fault.QUIET_END, times=None, model=f"{NAME}@{room.others[0]}")
    answer = await room.http.post(CHAT, json=ask(CHAT, model=f"{NAME}@{room.others[0]}", stream=True))
    assert "error" in events(answer.content)[-1][1]
    await room.traffic(70, stream=True)
    await room.until_over()
    (event,) = (await room.gateway.started.gateway.adapters.history(NAME, before=None, limit=1))[0]
    assert "canary requests failed (100 %)" in event.why


async def test_nothing_ends_when_both_fail_alike(room: Trying) -> None:
    await room.canary(50, rules={"min_requests": 10})
    await room.traffic(40)
    room.engine.script(Fault.STATUS, times=None)
    await room.traffic(60)
    async with asyncio.timeout(30):
        while "no rule is broken" not in (canary := (await room.shown())["canary"])["standing"]:
            await asyncio.sleep(0.05)
    assert min(canary["live"]["errors"], canary["canary"]["errors"]) > 0


async def test_callers_own_mistakes_and_leaving_are_nobodys_fault(room: Trying) -> None:
    await room.canary(100, rules={"min_requests": 5})
    for user in users(6):
        answer = await room.http.post(CHAT, json=ask(CHAT, model=NAME, user=user, max_tokens=5000))
        assert answer.status_code == 400
    room.engine.script(Fault.STALL_BEFORE_HEAD, times=6)
    for user in users(6):
        leaving = asyncio.create_task(room.http.post(CHAT, json=ask(CHAT, model=NAME, user=user)))
        await room.engine.working(1)
        leaving.cancel()
        await room.engine.idle()
    async with asyncio.timeout(30):
        while (canary := (await room.shown())["canary"])["canary"]["left"] < 6:
            await asyncio.sleep(0.02)
    assert (canary["canary"]["requests"], canary["canary"]["refused"], canary["canary"]["errors"]) == (0, 6, 0)


async def test_a_version_that_has_to_be_fetched_into_a_slot_is_not_slow(tmp_path: Path) -> None:
    """A canary is asked for less than the live version, so it is put out of the slots more often."""
    async with trying(tmp_path, engine=FakeVLLM(max_loras=2)) as room:
        for n in range(2):
            busy = {"source": str(tiny_lora(tmp_path / f"busy-{n}", 8 + n)), "name": f"busy-{n}", "promote": True}
            assert (await room.admin.post(ADAPTERS, json=busy)).status_code == 201
        await room.canary(100)

        async def after(models: tuple[str, ...]) -> dict[str, Any]:
            for model in models:
                answer = await room.http.post(CHAT, json=ask(CHAT, model=model, stream=True))
                assert answer.status_code == 200
            seen: dict[str, Any] = (await room.shown())["canary"]["canary"]
            return seen

        seen = await after(("busy-0", "busy-1") + (NAME, "busy-0", "busy-1") * 5)
        assert (seen["requests"], seen["finish_reasons"], seen["first_token_s"]) == (5, {"stop": 5}, None)
        seen = await after((NAME, NAME))
        assert (seen["requests"], seen["first_token_s"] > 0) == (7, True)


# What else happens meanwhile ----------------------------------------------------------------------------------


async def test_promoting_the_canary_ends_it(room: Trying) -> None:
    await room.canary(20)
    promoted = await room.admin.post(f"{ADAPTERS}/{NAME}/promote", json={"version": room.others[0]})
    assert (promoted.json()["live"], promoted.json()["canary"]) == (room.others[0], None)
    assert set((await room.versions(users(30))).values()) == {room.others[0]}
    again = await room.admin.post(f"{ADAPTERS}/{NAME}/canary", json={"version": room.others[0], "percent": 5})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")


async def test_another_canary_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async with trying(tmp_path, versions=3) as room:
        await room.canary(50)
        await room.versions(users(20))
        document = await room.canary(60, room.others[1])
        assert document["canary"]["canary"]["requests"] == 0, "it is counted anew"
        seen = await room.versions(users(60))
        assert set(seen.values()) == {room.live, room.others[1]}
        stale = {"version": room.others[0], "percent": 0}
        assert (await room.admin.post(f"{ADAPTERS}/{NAME}/canary", json=stale)).status_code == 409
        assert (await room.shown())["canary"]["version"] == room.others[1]
        gone = await room.admin.delete(f"{ADAPTERS}/{NAME}")
        assert gone.status_code == 200
        assert (await room.http.post(CHAT, json=ask(CHAT, model=NAME))).status_code == 404


async def test_a_stream_goes_on_with_its_version_when_the_canary_ends(room: Trying) -> None:
    await room.canary(100)
    room.engine.script(Fault.SLOW, delay=0.05)
    said = " ".join(f"w{n}" for n in range(20))
    body = ask(CHAT, said, model=NAME, stream=True)
    async with room.http.stream("POST", CHAT, json=body) as answer:
        received = [await anext(chunks := answer.aiter_bytes())]
        assert (await room.admin.post(f"{ADAPTERS}/{NAME}/canary", json={"percent": 0})).status_code == 200
        received += [chunk async for chunk in chunks]
    whole = events(b"".join(received))
    assert whole[-1][1] == "[DONE]"
    text = "".join(e["choices"][0]["delta"].get("content", "") for _, e in whole[:-1] if e["choices"])
    assert text.startswith(f"{NAME}@{room.others[0]}: ")
    assert await room.version() == room.live


async def test_what_cannot_be_a_canary(room: Trying) -> None:
    url = f"{ADAPTERS}/{NAME}/canary"
    version = room.others[0]
    for body, status in (
        ({"version": room.live, "percent": 10}, 409),
        ({"version": "f" * 12, "percent": 10}, 404),
        ({"version": version, "percent": 101}, 400),
        ({"version": version, "percent": -1}, 400),
        ({"version": version, "percent": True}, 400),
        ({"version": version, "percent": "10"}, 400),
        ({"version": version}, 400),
        ({"percent": 10}, 400),
        ({"percent": 0}, 409),
        ({"version": version, "percent": 10, "rules": {"min_requests": 0}}, 400),
        ({"version": version, "percent": 10, "rules": {"max_errors": 1}}, 400),
    ):
        assert (await room.admin.post(url, json=body)).status_code == status, body
    assert (await room.shown())["canary"] is None


async def test_a_killed_gateway_comes_back_with_its_canary(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    folders = [tiny_lora(tmp_path / f"lora-{n}", n + 1) for n in range(2)]
    async with FakeVLLM() as engine:
        async with child.serving(tmp_path / "home", engine) as first, _admin(tmp_path, first) as admin:
            for n, folder in enumerate(folders):
                body = {"source": str(folder), "name": NAME, "promote": n == 0}
                made = (await admin.post(ADAPTERS, json=body)).json()
            tried = next(v["version"] for v in made["versions"] if v["version"] != made["live"])
            assert (await admin.post(f"{ADAPTERS}/{NAME}/canary", json={"version": tried, "percent": 40})).is_success
            async with child.caller(first) as http:
                before = [await _met(http, user) for user in users(25)]
            first.process.kill()
            await first.process.wait()
        async with child.serving(tmp_path / "home", engine) as second, child.caller(second) as http:
            http.headers["authorization"] = f"Bearer {first.key}"
            assert [await _met(http, user) for user in users(25)] == before
    assert set(before) == {f"{NAME}@{tried}", f"{NAME}@{made['live']}"}


def _admin(tmp_path: Path, gateway: child.Child) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {(tmp_path / 'home' / 'admin.key').read_text().strip()}"}
    return httpx.AsyncClient(base_url=gateway.admin_url, headers=headers, timeout=30, trust_env=False)


async def _met(http: httpx.AsyncClient, user: str) -> str:
    return str((await http.post(CHAT, json=ask(CHAT, model=NAME, user=user))).headers["x-loragate-model"])
