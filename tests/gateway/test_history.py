"""Who moved an adapter, when and why: over the admin port and on the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.test_cli_live import loragate
from tests.gateway.tiny_lora import tiny_lora

PATH = "/admin/v1/adapters"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


async def register(room: AdminRoom, seed: int, **more: object) -> dict[str, Any]:
    source = str(tiny_lora(room.home / f"lora-{seed}", seed))
    answer = await room.root_client.post(PATH, json={"source": source, "name": "cs", **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def told(room: AdminRoom, query: str = "") -> list[dict[str, Any]]:
    answer = await room.root_client.get(f"{PATH}/cs/history{query}")
    assert answer.status_code == 200, answer.text
    events: list[dict[str, Any]] = answer.json()["data"]
    return events


async def test_every_verb_says_who_and_why(room: AdminRoom) -> None:
    one = (await register(room, 1, promote=True))["live"]
    two = next(v["version"] for v in (await register(room, 2, notes="tuned"))["versions"] if v["version"] != one)
    boss = await room.issue("admin")
    async with room.client(boss.token) as http:
        for method, path, body in (
            ("POST", "/promote", {"version": two, "why": "better"}),
            ("POST", "/rollback", {"why": "wrong prices"}),
            ("POST", "/canary", {"version": two, "percent": 10, "why": "once more"}),
            ("POST", "/canary", {"percent": 0, "why": "enough"}),
            ("POST", "/load", {"version": two, "why": "a demo"}),
            ("POST", "/unload", {"version": two, "why": "over"}),
            ("PATCH", "", {"rpm": 60, "why": "costs"}),
        ):
            answer = await http.request(method, f"{PATH}/cs{path}", json=body)
            assert answer.status_code == 200, answer.text
        assert (await http.delete(f"{PATH}/cs", params={"version": two, "why": "never again"})).status_code == 200
    events = await told(room)
    moves = [(e["what"], e["version"], e["by"], e["why"]) for e in reversed(events)]
    source = str(room.home / "lora-")
    assert moves == [
        ("registered", one, "operator", f"{source}1"),
        ("promoted", one, "operator", ""),
        ("registered", two, "operator", f"{source}2"),
        ("promoted", two, boss.key.id, "better"),
        ("rolled back", one, boss.key.id, "wrong prices"),
        ("canary 10 %", two, boss.key.id, "once more"),
        ("canary ended", two, boss.key.id, "enough"),
        ("kept loaded", two, boss.key.id, "a demo"),
        ("unloaded", two, boss.key.id, "over"),
        ("limits: rpm 60", None, boss.key.id, "costs"),
        ("removed", two, boss.key.id, "never again"),
    ]
    assert all(set(event) == {"id", "at", "what", "version", "by", "why"} for event in events)


async def test_pages_go_back_in_time_and_outlive_the_adapter(room: AdminRoom) -> None:
    await register(room, 1, promote=True)
    await register(room, 2, promote=True)
    await room.root_client.delete(f"{PATH}/cs")
    whole = await told(room)
    answer = await room.root_client.get(f"{PATH}/cs/history?limit=4")
    first = answer.json()
    assert (len(first["data"]), first["has_more"]) == (4, True)
    rest = await room.root_client.get(f"{PATH}/cs/history?limit=4&before={first['data'][-1]['id']}")
    assert (first["data"] + rest.json()["data"], rest.json()["has_more"]) == (whole, False)
    assert [event["what"] for event in whole[:2]] == ["removed", "removed"]
    unknown = await room.root_client.get(f"{PATH}/nobody/history")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert (await room.root_client.get(f"{PATH}/cs/history?before=x")).status_code == 400


async def test_what_is_known_of_an_adapter_is_shown(room: AdminRoom) -> None:
    made = await register(room, 1, owner="k1A9fZq27LmP", notes="first try")
    assert (made["owner"], made["limits"]) == (
        "k1A9fZq27LmP",
        dict.fromkeys(("rpm", "tpm", "concurrency", "daily_tokens")),
    )
    (version,) = made["versions"]
    assert (version["registered_by"], version["lineage"], version["notes"]) == ("operator", False, "first try")
    boss = await room.issue("admin")
    async with room.client(boss.token) as http:
        source = str(tiny_lora(room.home / "lora-2", 2))
        both = (await http.post(PATH, json={"source": source, "name": "cs", "owner": "another0key0"})).json()
    assert both["owner"] == "k1A9fZq27LmP", "a second version does not take an adapter away"
    assert {v["registered_by"] for v in both["versions"]} == {"operator", boss.key.id}


async def test_limits_are_changed_one_by_one(room: AdminRoom) -> None:
    await register(room, 1)
    for body, limits in (
        ({"rpm": 5, "daily_tokens": 10**12}, (5, None, None, 10**12)),
        ({"concurrency": 2}, (5, None, 2, 10**12)),
        ({"rpm": None}, (None, None, 2, 10**12)),
    ):
        shown = (await room.root_client.patch(f"{PATH}/cs", json=body)).json()["limits"]
        assert shown == dict(zip(("rpm", "tpm", "concurrency", "daily_tokens"), limits, strict=True))
    for wrong in ({"rpm": 0}, {"rpm": True}, {"rpm": "5"}, {"rpm": 2**31}, {"speed": 1}):
        assert (await room.root_client.patch(f"{PATH}/cs", json=wrong)).status_code == 400, wrong
    assert (await room.root_client.patch(f"{PATH}/nobody", json={"rpm": 5})).status_code == 404
    said = [event["what"] for event in await told(room)]
    assert said[:3] == [
        "limits: concurrency 2, daily_tokens 1000000000000",
        "limits: rpm 5, concurrency 2, daily_tokens 1000000000000",
        "limits: rpm 5, daily_tokens 1000000000000",
    ]
    again = len(said)
    await room.root_client.patch(f"{PATH}/cs", json={"concurrency": 2})
    assert len(await told(room)) == again, "what is so already is no event"


async def test_on_the_command_line(room: AdminRoom) -> None:
    one = (await register(room, 1, promote=True))["live"]
    await register(room, 2, promote=True, notes="tuned\x1b[31m")
    back = await loragate(room, "adapters", "rollback", "cs", "--why", "wrong prices")
    assert (back.code, "tuned" in back.stdout, "\x1b" in back.stdout) == (0, True, False)
    screen = await loragate(room, "adapters", "history", "cs", "--limit", "2")
    newest = screen.stdout.splitlines()[1]
    assert all(part in newest for part in ("rolled back", one, "operator", "wrong prices", "UTC")), screen.stdout
    assert (len(screen.stdout.splitlines()), "--before" in screen.stderr) == (3, True)
    document = (await loragate(room, "adapters", "history", "cs", "--json")).document()
    assert (set(document), document["data"][0]["why"]) == ({"data", "has_more"}, "wrong prices")
    limited = await loragate(room, "adapters", "limit", "cs", "--rpm", "60", "--daily-tokens", "1000")
    assert "60/min, 1000 tokens/day" in limited.stdout
    freed = (await loragate(room, "adapters", "limit", "cs", "--none", "--tpm", "7", "--json")).document()
    assert {field: value for field, value in freed["limits"].items() if value is not None} == {"tpm": 7}
    assert (await loragate(room, "adapters", "limit", "cs")).code == 2
    gone = await loragate(room, "adapters", "remove", "cs", "--why", "no longer sold")
    assert gone.code == 0
    assert (await told(room))[0]["why"] == "no longer sold"
