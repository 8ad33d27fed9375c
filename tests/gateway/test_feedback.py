"""POST /v1/feedback on a whole gateway: who may, what is taken, what it becomes, and that it is forgotten."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.db import Database
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora
from training.errors import FeedbackFull
from training.feedback import FeedbackService
from training.store_feedback import Wanted

ROOT = Path(__file__).resolve().parents[2]
BOTH = frozenset({"inference", "feedback"})
SECRET = "the parcel of Mrs Winterbottom"
SAID: dict[str, Any] = {
    "model": "demo-base",
    "messages": [{"role": "user", "content": f"Where is {SECRET}?"}],
    "answer": "I do not know.",
    "correction": "It is in Leeds.",
}


@pytest.fixture
async def gateway(engine: FakeVLLM, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", [engine]) as up:
        yield up


async def send(gateway: Running, key: str, /, **changes: Any) -> Any:
    body = {name: value for name, value in (SAID | changes).items() if value is not None}
    async with await gateway.http(key) as http:
        return await http.post("/v1/feedback", json=body)


async def kept(gateway: Running, **query: Any) -> list[dict[str, Any]]:
    async with gateway.admin() as admin:
        page = (await admin.get("/admin/v1/feedback", params=query)).json()
    found: list[dict[str, Any]] = page["data"]
    return found


async def register(gateway: Running, name: str) -> str:
    body = {"source": str(tiny_lora(gateway.data_dir.parent / name, 1)), "name": name, "promote": True}
    async with gateway.admin() as admin:
        made = await admin.post("/admin/v1/adapters", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["live"])


async def loragate(gateway: Running, *argv: str) -> tuple[int, str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(gateway.data_dir), "LORAGATE_ADMIN_URL": gateway.admin_url, "PYTHONPATH": str(ROOT)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *argv),
        cwd=gateway.data_dir.parent,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    return child.returncode or 0, stdout.decode(), stderr.decode()


async def test_the_official_client_corrects_what_it_was_answered(gateway: Running) -> None:
    live = await register(gateway, "parcels")
    key = await gateway.key(scopes=BOTH)
    messages: Any = SAID["messages"]
    async with await gateway.openai(key) as client:
        answer = await client.chat.completions.create(model="parcels", messages=messages)
        told = await client.post(
            "/feedback",
            cast_to=object,
            body={
                "model": answer.model,
                "messages": messages,
                "answer": answer.choices[0].message.content,
                "correction": "It is in Leeds.",
                "user": "u-1",
            },
        )
    assert isinstance(told, dict)
    made = {"id": "fb-1", "object": "feedback", "created_at": 0, "model": "parcels", "version": live}
    assert told | {"created_at": 0} == made
    (one,) = await kept(gateway, model="parcels", version=live)
    assert (one["correction"], one["user"]) == ("It is in Leeds.", "u-1")
    assert one["messages"][0]["content"] == SAID["messages"][0]["content"]


async def test_a_public_name_alone_says_nothing_about_the_version(gateway: Running) -> None:
    await register(gateway, "parcels")
    key = await gateway.key(scopes=frozenset({"training"}))
    assert (await send(gateway, key, model="parcels")).json()["version"] is None


@pytest.mark.parametrize("scopes", [{"inference"}, {"admin"}])
async def test_a_key_without_the_scope_may_not(gateway: Running, scopes: set[str]) -> None:
    answer = await send(gateway, await gateway.key(scopes=frozenset(scopes)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    assert answer.headers["x-should-retry"] == "false"
    assert await kept(gateway) == []


async def test_strangers_and_models_that_a_key_may_not_use(gateway: Running) -> None:
    await register(gateway, "parcels")
    assert (await send(gateway, "lg-nobody")).status_code == 401
    key = await gateway.key(scopes=BOTH, models=frozenset({"parcels"}))
    for model in ("demo-base", "nothing", "parcels@000000000000"):
        answer = await send(gateway, key, model=model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), model


REFUSED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "a word too many": ({"colour": "red"}, "colour", "Unknown parameter `colour`"),
    "no model": ({"model": None}, "model", "is required"),
    "no messages": ({"messages": []}, "messages", "at least 1 item"),
    "a wrong role": ({"messages": [{"role": "boss", "content": SECRET}]}, "messages.0.role", "Input should be"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]},
        "messages.0.content",
        "only text can be trained on",
    ),
    "nothing asked": ({"messages": [{"role": "user", "content": " "}]}, "messages.0", "needs content"),
    "the answer among the messages": (
        {"messages": [*SAID["messages"], {"role": "assistant", "content": SECRET}]},
        None,
        "goes into `answer`",
    ),
    "nothing said": ({"correction": None}, None, "`correction` (the right answer) or `rating`"),
    "an empty correction": ({"correction": "  "}, None, "`correction` is empty"),
    "a rating of nothing": ({"correction": None, "rating": "bad", "answer": None}, None, "needs the `answer`"),
    "good, and corrected": ({"rating": "good"}, None, "send one of both"),
    "a rating of five stars": ({"rating": 5}, "rating", "'good' or 'bad'"),
    "a long note": ({"note": "x" * 2001}, "note", "at most 2000"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
async def test_what_is_refused_is_named_and_never_repeated(
    gateway: Running, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    changes, param, words = REFUSED[case]
    answer = await send(gateway, await gateway.key(scopes=BOTH), **changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert SECRET not in answer.text + caplog.text
    assert await kept(gateway) == []


async def test_what_is_no_json_or_too_much(engine: FakeVLLM, tmp_path: Path) -> None:
    bounds = {"max_body_bytes": 2000}
    async with running(tmp_path / "data", [engine], feedback=bounds) as gateway:
        key = await gateway.key(scopes=BOTH)
        assert (await send(gateway, key, note="x" * 1900)).status_code == 413
        async with await gateway.http(key) as http:
            assert (await http.post("/v1/feedback", content=b"{}")).status_code == 415
            json_type = {"content-type": "application/json"}
            answer = await http.post("/v1/feedback", content=b"{", headers=json_type)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
            answer = await http.get("/v1/feedback")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_how_much_and_how_fast_one_key_may(engine: FakeVLLM, tmp_path: Path) -> None:
    async with running(tmp_path / "data", [engine], feedback={"max_per_key": 2, "per_minute": 3}) as gateway:
        key, other = await gateway.key(scopes=BOTH), await gateway.key(scopes=BOTH)
        answers = [await send(gateway, key) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert answers[2].json()["error"]["code"] == "insufficient_quota"
        assert answers[2].headers["x-should-retry"] == "false"
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        assert (await send(gateway, other)).status_code == 200


async def test_a_key_takes_back_its_own_and_no_other(gateway: Running) -> None:
    mine, other = await gateway.key(scopes=BOTH), await gateway.key(scopes=BOTH)
    made = (await send(gateway, mine)).json()["id"]
    async with await gateway.http(other) as http:
        for wrong in (made, "fb-99", "fb-x", "12", "fb-99999999999"):
            assert (await http.delete(f"/v1/feedback/{wrong}")).status_code == 404, wrong
    async with await gateway.http(mine) as http:
        gone = (await http.delete(f"/v1/feedback/{made}")).json()
    assert gone == {"id": made, "object": "feedback", "deleted": True}
    assert await kept(gateway) == []


async def test_an_operator_exports_and_forgets(gateway: Running, tmp_path: Path) -> None:
    key = await gateway.key(scopes=BOTH)
    asked = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Open?"}]
    await send(gateway, key, messages=asked, correction="From 9.", user="u-1")
    await send(gateway, key, messages=asked, correction="From 8.", user="u-2")
    await send(gateway, key, correction=None, rating="bad")
    await send(gateway, key, messages=[{"role": "user", "content": "Thanks!"}], correction=None, rating="good")
    code, shown, _ = await loragate(gateway, "feedback", "list")
    assert (code, shown.count("\n"), "From 9." in shown) == (0, 5, False)
    assert "From 9." in (await loragate(gateway, "feedback", "list", "--full"))[1]

    to = tmp_path / "corrections.jsonl"
    code, shown, told = await loragate(gateway, "feedback", "export", "--name", "demo-base", "--to", str(to))
    assert (code, shown) == (0, f"1 rows are in {to}.\n"), told
    assert "1, an older word on the same question" in told
    assert json.loads(to.read_text()) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Open?"},
            {"role": "assistant", "content": "From 8."},
        ]
    }
    code, _, told = await loragate(gateway, "feedback", "export", "--to", str(to))
    assert (code, "--force" in told) == (1, True)
    code, shown, _ = await loragate(gateway, "feedback", "export", "--to", str(to), "--force", "--with-good", "--json")
    assert (code, json.loads(shown)["rows"]) == (0, 2)
    pairs = tmp_path / "pairs.jsonl"
    await loragate(gateway, "feedback", "export", "--form", "preference", "--to", str(pairs))
    assert json.loads(pairs.read_text())["non_preferred_output"][0]["content"] == "I do not know."

    assert (await loragate(gateway, "feedback", "remove"))[0] == 2
    code, shown, _ = await loragate(gateway, "feedback", "remove", "--user", "u-1", "--json")
    assert (code, json.loads(shown)) == (0, {"removed": 1})
    assert (await loragate(gateway, "feedback", "remove", "fb-2"))[0] == 0
    assert (await loragate(gateway, "feedback", "remove", "fb-2"))[0] == 1
    assert [each["id"] for each in await kept(gateway)] == ["fb-3", "fb-4"]
    async with gateway.admin() as admin:
        assert (await admin.delete("/admin/v1/feedback")).status_code == 400, "never everything by a slip"


async def test_pages(gateway: Running) -> None:
    key = await gateway.key(scopes=BOTH)
    for _ in range(3):
        await send(gateway, key)
    async with gateway.admin() as admin:
        one = (await admin.get("/admin/v1/feedback", params={"limit": 2})).json()
        two = (await admin.get("/admin/v1/feedback", params={"limit": 2, "after": one["data"][-1]["id"]})).json()
    assert [each["id"] for each in one["data"] + two["data"]] == ["fb-1", "fb-2", "fb-3"]
    assert (one["has_more"], two["has_more"]) == (True, False)


# The service alone, on both databases ---------------------------------------------------------------------------


async def test_what_is_too_old_goes(database_url: str) -> None:
    now = [1_000.0]
    db = Database.open(database_url)
    service = FeedbackService(db, clock=lambda: now[0], keep_s=50, most=2)
    try:
        body = {"messages": [{"role": "user", "content": "\0 ☃"}], "correction": "x", "user": "u"}
        first = await service.add("key", "a", "0" * 12, body)
        now[0] += 40
        await service.add("key", "b", None, body)
        with pytest.raises(FeedbackFull):
            await service.add("key", "a", None, body)
        assert (await service.page(Wanted(user="u"), 0, 10))[0][0] == first
        assert await service.page(Wanted(), 0, 1) == ((first,), True)
        now[0] += 20
        assert await service.sweep() == 1
        assert [each.model for each in (await service.page(Wanted(), 0, 10))[0]] == ["b"]
        await service.add("key", "a", None, body)
        assert await service.clear(Wanted(owner="key")) == 2
    finally:
        db.close()


async def test_it_sweeps_by_itself_and_stops(database_url: str) -> None:
    db = Database.open(database_url)
    service = FeedbackService(db, clock=lambda: 1000.0, keep_s=-1, most=9, sweep_s=0.01)
    try:
        async with service:
            await service.add("key", "a", None, {"messages": []})
            async with asyncio.timeout(10):
                while (await service.page(Wanted(), 0, 1))[0]:
                    await asyncio.sleep(0.01)
    finally:
        db.close()


async def test_no_answer_of_a_wrong_kind_is_taken_for_one(gateway: Running) -> None:
    """The SDK shows our sentence, not a riddle."""
    async with await gateway.openai(await gateway.key()) as client:
        with pytest.raises(openai.PermissionDeniedError, match="scope `feedback`"):
            await client.post("/feedback", cast_to=object, body=SAID)
