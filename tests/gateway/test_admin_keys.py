"""/admin/v1/keys over HTTP: the contract's shape, null and left out, pages, and a secret that is shown once."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room

FIELDS = {
    *("id", "name", "scopes", "models", "rpm", "tpm", "concurrency", "daily_tokens"),
    *("expires_at", "created_at", "revoked_at"),
}


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


async def test_the_smallest_key(room: AdminRoom) -> None:
    response = await room.root_client.post("/admin/v1/keys", json={"name": "app"})
    assert response.status_code == 201
    key = response.json()
    assert set(key) == FIELDS | {"key"}
    assert (key["scopes"], key["models"], key["rpm"], key["revoked_at"]) == (["inference"], None, None, None)
    assert key["key"].startswith(f"lg-{key['id']}-")
    assert abs(key["created_at"] - time.time()) < 60
    shown = (await room.root_client.get(f"/admin/v1/keys/{key['id']}")).json()
    assert shown == {name: value for name, value in key.items() if name != "key"}


async def test_all_fields_and_their_change(room: AdminRoom) -> None:
    wanted = {
        "name": "全部",
        "scopes": ["inference", "training"],
        "models": ["customer-service", "ft:base:org::id"],
        "rpm": 60,
        "tpm": 10_000,
        "concurrency": 4,
        "daily_tokens": 5_000_000_000,
        "expires_at": 2_000_000_000,
    }
    key = (await room.root_client.post("/admin/v1/keys", json=wanted)).json()
    assert {name: key[name] for name in wanted} == wanted
    path = f"/admin/v1/keys/{key['id']}"
    changed = (await room.root_client.patch(path, json={"rpm": None, "models": None, "name": "b"})).json()
    assert changed == {**{n: v for n, v in key.items() if n != "key"}, "rpm": None, "models": None, "name": "b"}
    until = (await room.root_client.patch(path, json={"expires_at": "2033-05-18T03:33:21Z"})).json()
    assert until["expires_at"] == 2_000_000_001
    assert (await room.root_client.patch(path, json={})).json() == until
    for body in ({"name": None}, {"scopes": None}, {"id": "x"}, {"created_at": 1}, {"revoked_at": None}, {"key": "x"}):
        assert (await room.root_client.patch(path, json=body)).status_code == 400, body
    assert (await room.root_client.get(path)).json() == until


async def test_rotation_and_revocation(room: AdminRoom) -> None:
    boss = await room.issue("admin")
    path = f"/admin/v1/keys/{boss.key.id}"
    async with room.client(boss.token) as old:
        turned = (await room.root_client.post(f"{path}/rotate", json={"grace_s": 60})).json()
        assert turned["id"] == boss.key.id
        async with room.client(turned["key"]) as new:
            assert [(await c.get(path)).status_code for c in (old, new)] == [200, 200]
            again = await room.root_client.post(f"{path}/rotate", json={"grace_s": 0})
            assert [(await c.get(path)).status_code for c in (old, new)] == [401, 401]
        async with room.client(again.json()["key"]) as newest:
            assert (await newest.get(path)).status_code == 200
            revoked = (await room.root_client.delete(path)).json()
            assert revoked["revoked_at"] >= revoked["created_at"]
            assert (await newest.get(path)).status_code == 401
    assert (await room.root_client.post(f"{path}/rotate")).status_code == 409
    assert (await room.root_client.patch(path, json={"name": "x"})).status_code == 409
    assert (await room.root_client.delete(path)).json() == revoked, "twice is no error"
    assert (await room.root_client.post(f"{path}/rotate", json={"grace_s": -1})).status_code == 400


async def test_rotation_without_a_body_has_an_hour_of_grace(room: AdminRoom) -> None:
    boss = await room.issue("admin")
    assert (await room.root_client.post(f"/admin/v1/keys/{boss.key.id}/rotate")).status_code == 200
    kept = await room.keys.show(boss.key.id)
    assert kept.previous_valid_until is not None
    assert 3500 < kept.previous_valid_until - time.time() <= 3600


async def test_pages(room: AdminRoom) -> None:
    made = [(await room.issue()).key.id for _ in range(5)]
    first = (await room.root_client.get("/admin/v1/keys?limit=3")).json()
    rest = (await room.root_client.get(f"/admin/v1/keys?limit=3&after={first['data'][-1]['id']}")).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [key["id"] for key in first["data"] + rest["data"]] == made
    assert (await room.root_client.get("/admin/v1/keys?after=AAAAAAAAAAAA")).status_code == 404


async def test_ids_that_are_none(room: AdminRoom) -> None:
    await room.issue()
    for key_id in ("AAAAAAAAAAAA", "'%20OR%201=1--", "%00", "..%2f..%2fx", "%F0%9F%98%80", "a" * 5000):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
            response = await room.root_client.request(method, f"/admin/v1/keys/{key_id}{path}")
            assert response.status_code == 404, response.text
    assert len((await room.root_client.get("/admin/v1/keys")).json()["data"]) == 1


async def test_a_secret_is_in_its_own_answer_and_nowhere_else(
    room: AdminRoom, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = (await room.root_client.post("/admin/v1/keys", json={"name": "canary", "scopes": ["admin"]})).json()
    turned = (await room.root_client.post(f"/admin/v1/keys/{key['id']}/rotate")).json()
    texts = [caplog.text]
    async with room.client(turned["key"]) as client:
        for method, path in (
            *(("GET", "/admin/v1/keys"), ("GET", f"/admin/v1/keys/{key['id']}"), ("GET", "/admin/v1/status")),
            *(("PATCH", f"/admin/v1/keys/{key['id']}"), ("POST", "/admin/v1/keys"), ("GET", "/nothing")),
            ("DELETE", f"/admin/v1/keys/{key['id']}"),
        ):
            texts.append((await client.request(method, path)).text)
            texts.append((await client.request(method, path, json={key["key"]: turned["key"]})).text)
    files = b"".join(path.read_bytes() for path in room.home.iterdir() if path.name.startswith("loragate.db"))
    assert key["id"].encode() in files
    for token in (key["key"], turned["key"], room.root):
        secret = token[16:59]
        assert secret.encode() not in files
        assert all(secret not in text for text in (*texts, caplog.text))
