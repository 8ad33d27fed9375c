"""Who may do what on the admin port: the policy of every route, the role x route matrix, guessing, bodies, ids."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from gateway.admin import guard
from gateway.admin.access import admin, public
from gateway.admin.app import create_metrics
from gateway.tokens import mint
from tests.gateway.admin_room import AdminRoom, admin_room, serving
from tests.gateway.tiny_lora import tiny_lora

CANARY = "canary-7f3a"


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, after checking what every refusal has."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


def routes(found: list[BaseRoute]) -> Iterator[APIRoute]:
    """Every route that the app can answer with; anything that is no APIRoute fails here."""
    for route in found:
        inner = getattr(route, "original_router", None)  # how FastAPI keeps an included router
        if inner is not None:
            yield from routes(inner.routes)
        else:
            assert isinstance(route, APIRoute), f"{route} has no policy"
            yield route


def policies(route: APIRoute) -> set[Callable[..., Any] | None]:
    return {dependant.call for dependant in route.dependant.dependencies} & {admin, public}


async def test_every_route_declares_one_policy(room: AdminRoom) -> None:
    found = list(routes(room.app.routes))
    assert len(found) >= 20
    for route in found:
        assert len(policies(route)) == 1, f"{route.path} declares no policy, or two"
    assert {route.path for route in found if policies(route) == {public}} == guard.OPEN


FILLED = {
    "key_id": "A" * 12,
    "name": "none",
    "version": "0" * 12,
    "file": "adapter_config.json",
    "job": "ftjob-" + "A" * 24,
    "feedback_id": "fb-1",
}


def calls(room: AdminRoom) -> list[tuple[str, str]]:
    filled = [
        (method, route.path.format(**FILLED))
        for route in routes(room.app.routes)
        for method in sorted(route.methods or ())
    ]
    return [(method, path) for method, path in filled if path not in guard.OPEN]


async def test_no_role_but_admin_gets_through_any_route(room: AdminRoom) -> None:
    roles = [(await room.issue(scope)).token for scope in ("inference", "training")]
    for method, path in calls(room):
        for token in roles:
            async with room.client(token) as client:
                refused = await client.request(method, path)
            assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope"), (method, path)
        by_root = await room.root_client.request(method, path)
        assert by_root.status_code not in (401, 403, 405, 500), (method, path)


async def test_a_key_with_the_scope_admin_administers(room: AdminRoom) -> None:
    boss = await room.issue("admin")
    async with room.client(boss.token) as client:
        assert (await client.get("/admin/v1/keys")).status_code == 200
        made = await client.post("/admin/v1/keys", json={"name": "x", "scopes": ["inference"]})
        assert (made.status_code, error_of(made)["code"]) == (403, "insufficient_scope"), "not beyond itself"
        await room.root_client.delete(f"/admin/v1/keys/{boss.key.id}")
        assert (await client.get("/admin/v1/keys")).status_code == 401, "revoked: at once"


async def test_an_admin_of_some_models_administers_those(room: AdminRoom) -> None:
    for seed, name in enumerate(("mine", "theirs")):
        body = {"source": str(tiny_lora(room.home / name, seed + 1)), "name": name, "promote": True}
        assert (await room.root_client.post("/admin/v1/adapters", json=body)).status_code == 201
    boss = await room.issue("admin", models=frozenset({"mine", "mine-too"}))
    async with room.client(boss.token) as client:
        listed = (await client.get("/admin/v1/adapters?limit=1")).json()
        assert ([each["name"] for each in listed["data"]], listed["has_more"]) == (["mine"], False)
        for method, path in calls(room):
            if path.startswith("/admin/v1/adapters/none"):
                refused = await client.request(method, path.replace("none", "theirs"))
                assert (refused.status_code, error_of(refused)["code"]) == (404, "not_found"), (method, path)
        body = {"source": str(room.home / "theirs"), "name": "theirs"}
        form: dict[str, tuple[str | None, bytes]] = {"name": (None, b"theirs"), "file": ("x.tar", b"x")}
        for refused in (
            await client.post("/admin/v1/adapters", json=body),
            await client.post("/admin/v1/adapters", files=form),
        ):
            assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
        assert (await client.post("/admin/v1/adapters", json={**body, "name": "mine-too"})).status_code == 201
        assert (await client.delete("/admin/v1/adapters/mine")).status_code == 200
    assert (await room.root_client.get("/admin/v1/adapters/theirs")).status_code == 200


WRONG: list[bytes | None] = [
    None,
    b"",
    b"Bearer",
    b"Bearer x",
    b"Basic YWRtaW46YWRtaW4=",
    b"Bearer \xc3\xa9\xff",
    b"Bearer lg-admin0000000-" + b"a" * 49,
    b"bearer " + b"a" * 30_000,
]


async def test_every_wrong_key_is_the_same_401_on_every_route(room: AdminRoom) -> None:
    unknown = mint(lambda n: b"\x07" * n).token.encode()
    revoked = await room.issue("admin")
    await room.keys.revoke(revoked.key.id, room.keys.root)
    bodies = set()
    attempts = [*WRONG, b"Bearer " + unknown, b"Bearer " + revoked.token.encode()]
    async with httpx.AsyncClient(base_url=room.url, verify=False, timeout=30) as client:
        for value in attempts:
            headers = [] if value is None else [(b"authorization", value)]
            response = await client.get("/admin/v1/keys", headers=headers)
            assert error_of(response)["code"] == "invalid_api_key", value
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            bodies.add(response.content)
        twice = [(b"authorization", b"Bearer " + room.root.encode())] * 2
        assert (await client.get("/admin/v1/keys", headers=twice)).status_code == 401
    assert len(bodies) == 1


async def test_paths_that_do_not_exist_need_a_key_too(room: AdminRoom) -> None:
    paths = ("/", "/admin/v1/nothing", "/admin/v1/keys/", "/docs", "/openapi.json", "/redoc", "/readyz/")
    async with room.client(None) as client:
        for path in paths:
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/admin/v1/keys", content=b"x" * 5_000_000)).status_code == 401, "no body is read"
    missing = await room.root_client.get("/admin/v1/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "unknown_url")
    wrong = await room.root_client.put("/admin/v1/keys", json={})
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] in ("GET", "POST")


async def test_open_paths_need_no_key(room: AdminRoom) -> None:
    async with room.client(None) as client:
        alive = await client.get("/livez")
        assert (alive.status_code, alive.json()) == (200, {"alive": True})
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["no engine"])
        scrape = await client.get("/metrics")
        assert scrape.headers["content-type"].startswith("text/plain")
        assert all(response.headers["x-request-id"] for response in (alive, ready, scrape))


async def test_guessing_is_stopped_and_the_operator_is_not(room: AdminRoom) -> None:
    async with room.client("guess") as client:
        statuses = [(await client.get("/admin/v1/status")).status_code for _ in range(25)]
        assert statuses == [401] * 20 + [429] * 5
        limited = await client.get("/admin/v1/status")
    assert error_of(limited)["code"] == "rate_limit_exceeded"
    assert 1 <= int(limited.headers["retry-after"]) <= 120
    assert (await room.root_client.get("/admin/v1/status")).status_code == 200


async def test_one_key_cannot_flood(room: AdminRoom) -> None:
    busy, other = await room.issue("admin"), await room.issue("admin")
    async with room.client(busy.token) as client, room.client(other.token) as second:
        statuses = [(await client.get("/admin/v1/nothing")).status_code for _ in range(601)]
        assert statuses == [404] * 600 + [429]
        assert (await second.get("/admin/v1/nothing")).status_code == 404


BAD_BODIES = [
    (b"{", "invalid_json"),
    (b"\xff\xfe{}", "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b'{"name": "x", "rpm": ' + b"9" * 5000 + b"}", "invalid_json"),
    (b"[]", "invalid_value"),
    (b"", "invalid_value"),
    (b"null", "invalid_value"),
    (b'{"name": "x", "rpm": NaN}', "invalid_value"),
    (b'{"name": "x", "rpm": true}', "invalid_value"),
    (b'{"name": "x", "rpm": -1}', "invalid_value"),
    (b'{"name": "x", "rpm": 1e3}', "invalid_value"),
    (b'{"name": "x", "rpm": 99999999999}', "invalid_value"),
    (b'{"name": "\\ud800"}', "invalid_value"),
    (b'{"name": "a\\u0000b"}', "invalid_value"),
    (b'{"name": "x", "scopes": ["canary-7f3a"]}', "invalid_value"),
    (b'{"name": "x", "scopes": []}', "invalid_value"),
    (b'{"name": "x", "models": ["canary-7f3a/../x"]}', "invalid_value"),
    (b'{"name": "x", "expires_at": "2030-01-01T00:00:00"}', "invalid_value"),
    (b'{"name": "x", "expires_at": 1}', "invalid_value"),
    (b'{"name": "x", "expires_at": 4102444800000}', "invalid_value"),  # milliseconds
    (b'{"name": "x", "expires_at": 1.5}', "invalid_value"),
    (b'{"name": "x", "canary": 1}', "unsupported_parameter"),
    (b'{"name": "x", "canary-7f3a \\u001b[2J": 1}', "unsupported_parameter"),
    (b'{"name": ["canary-7f3a"]}', "invalid_value"),
]


async def test_bad_bodies_are_400_and_never_repeated(room: AdminRoom) -> None:
    headers = {"content-type": "application/json"}
    for body, code in BAD_BODIES:
        response = await room.root_client.post("/admin/v1/keys", content=body, headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (400, code), body[:60]
        assert CANARY not in response.text
    assert (await room.root_client.get("/admin/v1/keys")).json()["data"] == []


async def test_refusals_name_the_field_and_say_its_rule_in_words(room: AdminRoom) -> None:
    moment = await room.root_client.post("/admin/v1/keys", json={"name": "x", "expires_at": "soon"})
    assert error_of(moment)["param"] == "expires_at"
    digits, name = {"version": "latest"}, "/admin/v1/adapters/cs@0123456789ab"
    for response, param, said in (
        (await room.root_client.post("/admin/v1/adapters/cs/promote", json=digits), "version", "12 hex digits"),
        (await room.root_client.get(name), "name", "such as customer-service (a version of it is given apart)"),
        (await room.root_client.get("/admin/v1/usage?group_by=year"), "group_by", "key, model, day"),
        (await room.root_client.get("/admin/v1/usage?key=a-b"), "key", "a key's id"),
    ):
        assert (response.status_code, error_of(response)["param"]) == (400, param)
        assert said in error_of(response)["message"]


async def test_bad_queries_are_400(room: AdminRoom) -> None:
    for query in ("limit=0", "limit=1001", "limit=x", "what=1", f"limit={CANARY}"):
        response = await room.root_client.get(f"/admin/v1/keys?{query}")
        assert response.status_code == 400, query
        assert CANARY not in str(error_of(response))


async def test_bodies_are_json_and_bounded(room: AdminRoom) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = await room.root_client.post("/admin/v1/keys", content=b"{}", headers={"content-type": kind})
        assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    json_kind = {"content-type": "application/json"}
    response = await room.root_client.post("/admin/v1/keys", content=endless(), headers=json_kind)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


async def test_the_host_header_decides_nothing(room: AdminRoom) -> None:
    """What a forged Host did to frameworks that looked at request.url (CVE-2026-48710)."""
    port = int(room.url.rpartition(":")[2])

    def ask(host: str) -> bytes:
        request = f"GET /admin/v1/keys HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(request)
            return b"".join(iter(lambda: peer.recv(65_536), b""))

    for host in ("127.0.0.1:1/readyz?", "x/livez#", "evil", "[::1"):
        assert b" 401 " in (await asyncio.to_thread(ask, host)).partition(b"\r\n")[0], host


async def test_a_failure_inside_is_500_in_the_same_shape_and_tells_nothing(
    room: AdminRoom, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError(f"text that holds {CANARY}")

    room.app.add_api_route("/broken", broken, methods=["GET"])
    caplog.set_level(logging.DEBUG)
    response = await room.root_client.get("/broken")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert CANARY not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert CANARY not in caplog.text


async def test_docs_are_whole_without_another_host(room: AdminRoom) -> None:
    document = (await room.root_client.get("/openapi.json")).json()
    assert "/admin/v1/keys/{key_id}/rotate" in document["paths"]
    page = await room.root_client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /admin/v1/keys" in page.text
    assert "daily_tokens" in page.text
    for foreign in ("http://", "https://", "<script", "src="):
        assert foreign not in page.text


async def test_the_metrics_port_has_metrics_and_nothing_else() -> None:
    app = create_metrics(lambda: b"x 1\n", lambda: "id")
    async with serving(app) as url, httpx.AsyncClient(base_url=url, verify=False, timeout=30) as client:
        assert (await client.get("/metrics")).content == b"x 1\n"
        for path in ("/admin/v1/keys", "/docs", "/livez", "/"):
            assert (await client.get(path)).status_code == 404


def test_the_folder_that_the_gateway_is_started_in_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"RATELIMIT_ENABLED=\xff\n")
    code = "from gateway.admin.guard import Guard; Guard(lambda token: None)"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
