"""/admin/v1/adapters over HTTP, on the real registry and store, with no engine running."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.tiny_lora import tiny_lora

PATH = "/admin/v1/adapters"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


async def register(room: AdminRoom, seed: int, name: str = "cs", **more: object) -> dict[str, object]:
    source = room.home / f"lora-{name}-{seed}"
    tiny_lora(source, seed)
    response = await room.root_client.post(PATH, json={"source": str(source), "name": name, **more})
    assert response.status_code == 201, response.text
    adapter: dict[str, object] = response.json()
    return adapter


def versions(adapter: dict[str, object]) -> list[str]:
    found = adapter["versions"]
    assert isinstance(found, list)
    return [version["version"] for version in found]


async def test_a_registered_adapter_has_the_documented_shape(room: AdminRoom) -> None:
    adapter = await register(room, 1, promote=True, notes="first")
    assert set(adapter) == {"name", "live", "previous", "canary", "owner", "limits", "versions"}
    assert isinstance(adapter["versions"], list)
    (version,) = adapter["versions"]
    assert set(version) >= {"version", "state", "created_at", "source", "size_bytes", "rank", "replicas"}
    assert (adapter["live"], adapter["previous"], version["rank"], version["state"]) == (
        *(version["version"], None),
        *(4, "live"),
    )
    assert (await room.root_client.get(f"{PATH}/cs")).json() == adapter
    assert (await room.root_client.get(PATH)).json() == {"data": [adapter], "has_more": False}


async def test_the_life_of_two_versions(room: AdminRoom) -> None:
    first = versions(await register(room, 1, promote=True))[0]
    both = await register(room, 2)
    second = versions(both)[0]
    assert (both["live"], sorted(versions(both))) == (first, sorted([first, second]))
    promoted = (await room.root_client.post(f"{PATH}/cs/promote", json={"version": second})).json()
    assert (promoted["live"], promoted["previous"]) == (second, first)
    back = (await room.root_client.post(f"{PATH}/cs/rollback")).json()
    assert (back["live"], back["previous"]) == (first, second)
    for verb, body in (("load", {}), ("load", {"version": second}), ("unload", {"version": second})):
        assert (await room.root_client.post(f"{PATH}/cs/{verb}", json=body)).status_code == 200, verb
    for wanted in (200, 409):  # kept loaded no longer; then it is live and nothing else
        assert (await room.root_client.post(f"{PATH}/cs/unload", json={"version": first})).status_code == wanted
    assert (await room.root_client.delete(f"{PATH}/cs?version={first}")).status_code == 409
    gone = (await room.root_client.delete(f"{PATH}/cs")).json()
    assert (gone["name"], sorted(gone["removed"])) == ("cs", sorted([first, second]))
    assert (await room.root_client.get(f"{PATH}/cs")).status_code == 404


async def test_a_version_in_the_body_of_a_delete_does_not_remove_the_adapter(room: AdminRoom) -> None:
    """As promote, load and unload take it; what is not looked at must not be taken for "all of it"."""
    adapter = await register(room, 1, promote=True)
    for body in ({"version": versions(adapter)[0]}, {}):
        refused = await room.root_client.request("DELETE", f"{PATH}/cs", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value"), refused.text
        assert "?version=" in refused.json()["error"]["message"]
    assert (await room.root_client.get(f"{PATH}/cs")).json()["live"] == adapter["live"]


async def test_pages_by_name(room: AdminRoom) -> None:
    for name in ("b", "a", "ft:base:org::c"):
        await register(room, 1, name)
    first = (await room.root_client.get(f"{PATH}?limit=2")).json()
    rest = (await room.root_client.get(f"{PATH}?limit=2&after=b")).json()
    assert [adapter["name"] for adapter in first["data"] + rest["data"]] == ["a", "b", "ft:base:org::c"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (await room.root_client.get(f"{PATH}/ft:base:org::c")).status_code == 200


async def test_check_stores_nothing(room: AdminRoom) -> None:
    source = tiny_lora(room.home / "x")
    report = (await room.root_client.post(f"{PATH}/check", json={"source": str(source)})).json()
    assert (report["ok"], report["rank"], len(report["version"])) == (True, 4, 12)
    assert report["memory"] == {"adapter_bytes": 2 * 4 * (8 + 8), "slot_bytes": None, "max_lora_rank": 16}
    assert [each["reason"] for each in report["findings"]] == ["base_unknown"], "no engine is running"
    assert (await room.root_client.get(PATH)).json()["data"] == []


async def test_check_tells_all_that_speaks_against_an_adapter(room: AdminRoom) -> None:
    """As a 400 with the error that registering it would give, and beside it every finding."""
    source = tiny_lora(room.home / "x")
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True, "bias": "all"}))
    refused = await room.root_client.post(f"{PATH}/check", json={"source": str(source)})
    body = refused.json()
    assert (refused.status_code, body["ok"], body["error"]["code"]) == (400, False, "adapter_rejected")
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert refused.headers["x-request-id"]
    told = [(each["severity"], each["reason"]) for each in body["findings"]]
    assert told == [("refuse", "dora"), ("refuse", "bias"), ("warn", "base_unknown")]
    assert "use_dora: false" in body["findings"][0]["nearest"]
    registered = await room.root_client.post(PATH, json={"source": str(source), "name": "cs"})
    assert (registered.status_code, registered.json()) == (400, {"error": body["error"]})


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"source": "relative", "name": "x"}, "invalid_value"),
    ({"source": "/a\x00b", "name": "x"}, "invalid_value"),
    ({"source": "/nowhere", "name": "x"}, "adapter_rejected"),
    ({"source": "/nowhere", "name": "a b"}, "invalid_name"),
    ({"source": "/nowhere", "name": "x", "promote": "yes"}, "invalid_value"),
    ({"source": "/nowhere", "name": "x", "chat_template": "{{ }}"}, "unsupported_parameter"),
    ({"name": "x"}, "invalid_value"),
]


async def test_what_cannot_be_registered(room: AdminRoom) -> None:
    for body, code in REFUSED:
        response = await room.root_client.post(PATH, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, code), body


async def test_names_that_are_none(room: AdminRoom) -> None:
    for name in ("..", "%2e%2e%2fx", "a%00b", "%20", "a@0123456789ab", "x" * 129):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rollback")):
            response = await room.root_client.request(method, f"{PATH}/{name}{path}")
            assert response.status_code in (400, 404, 405), response.text


async def test_a_canary_as_it_is_shown(room: AdminRoom) -> None:
    live = versions(await register(room, 1, promote=True))[0]
    tried = next(v for v in versions(await register(room, 2)) if v != live)
    body = {"version": tried, "percent": 12.5, "rules": {"max_latency_ratio": 2}, "why": "smaller"}
    made = (await room.root_client.post(f"{PATH}/cs/canary", json=body)).json()
    canary = made["canary"]
    assert set(canary) == {"version", "percent", "since", "rules", "live", "canary", "standing"}
    assert (made["live"], canary["version"], canary["percent"]) == (live, tried, 12.5)
    assert (canary["rules"]["max_latency_ratio"], canary["rules"]["min_requests"]) == (2, 50)
    arm = {"requests", "errors", "left", "refused", "completion_tokens", "finish_reasons", "first_token_s",
           "per_token_s", "whole_answer_s"}  # fmt: skip
    assert set(canary["live"]) == set(canary["canary"]) == arm
    assert [v["state"] for v in made["versions"] if v["version"] == tried] == ["canary"]
    assert (await room.root_client.get(f"{PATH}/cs")).json()["canary"] == canary
    ended = await room.root_client.post(f"{PATH}/cs/canary", json={"percent": 0, "why": "enough"})
    assert (ended.status_code, ended.json()["canary"]) == (200, None)
