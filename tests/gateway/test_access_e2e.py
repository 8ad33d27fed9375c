"""Who may ask, end to end: one 401 for every bad key, revocation from elsewhere, and models that are not shown."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import httpx

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import CHAT, MESSAGES, MODEL, ROUTES, ask, at_rest, counted, error_of, quiet
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora

ROOT = Path(__file__).resolve().parents[2]
SECRET_OF = slice(16, 59)


async def bad_keys(gateway: Running) -> dict[str, str | None]:
    """Every way to be nobody."""
    good, other = await gateway.key("a"), await gateway.key("b")
    revoked, rotated = await gateway.key("c"), await gateway.key("d")
    end = time.time() + 1
    expired = await gateway.key("e", expires_at=end)
    keys = gateway.started.gateway.keys
    await keys.revoke(revoked.split("-")[1], keys.root)
    await keys.rotate(rotated.split("-")[1], 0, keys.root)
    while time.time() <= end:
        await asyncio.sleep(0.05)
    return {
        "no header": None,
        "empty": "",
        "scheme alone": "Bearer",
        "no scheme": good,
        "basic": f"Basic {good}",
        "garbage": "Bearer x",
        "an OpenAI key": "Bearer sk-proj-abcdefghijklmnopqrstuvwxyz",
        "cut short": f"Bearer {good[:-1]}",
        "longer": f"Bearer {good}a",
        "wrong checksum": f"Bearer {good[:-1]}{'a' if good[-1] != 'a' else 'b'}",
        "another's secret": f"Bearer {good[:16]}{other[SECRET_OF]}{good[59:]}",
        "injection": "Bearer ' OR '1'='1",
        "latin-1": "Bearer l\xe9-caf\xe9",
        "long": "Bearer " + "a" * 20_000,
        "two in one": f"Bearer {good} {good}",
        "revoked": f"Bearer {revoked}",
        "rotated away": f"Bearer {rotated}",
        "expired": f"Bearer {expired}",
    }


async def test_every_bad_key_gets_the_same_answer(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        bad = await bad_keys(gateway)
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http:
            for path in (*ROUTES, "/v1/models", f"/v1/models/{MODEL}", "/v1/models/nobody"):
                answers = set()
                for name, value in bad.items():
                    headers = {} if value is None else {"authorization": value.encode("latin-1")}
                    sent = await (
                        http.get(path, headers=headers)  # type: ignore[arg-type]
                        if "models" in path
                        else http.post(path, json=ask(path), headers=headers)  # type: ignore[arg-type]
                    )
                    assert sent.status_code == 401, (path, name, sent.text)
                    seen = [(k, v) for k, v in sent.headers.items() if k not in ("x-request-id", "date")]
                    answers.add((sent.content, tuple(sorted(seen))))
                    error = error_of(path, sent.json())
                    if path.startswith(MESSAGES):
                        assert error["type"] == "authentication_error"
                    else:
                        assert error["code"] == "invalid_api_key"
                    assert sent.headers["www-authenticate"] == "Bearer"
                assert len(answers) == 1, (path, answers)
        assert engine.inferences == []
        await at_rest(gateway)


async def test_both_ways_to_send_a_key_are_one(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        key, admin_only = await counted(gateway), await gateway.key(scopes=frozenset({"admin"}))
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http:
            for path in ROUTES:
                for headers in ({"x-api-key": key}, {"authorization": f"bearer {key}"}):
                    assert (await http.post(path, json=ask(path), headers=headers)).status_code == 200
                answer = await http.post(path, json=ask(path), headers={"x-api-key": admin_only})
                assert answer.status_code == 403
                error = error_of(path, answer.json())
                assert path.startswith(MESSAGES) or error["code"] == "insufficient_scope"
                assert key not in answer.text
                for bearer, code in ((key, 200), (admin_only, 403), ("lg-no", 401)):
                    both = {"authorization": f"Bearer {bearer}", "x-api-key": key if code != 200 else admin_only}
                    told = (await http.post(path, json=ask(path), headers=both)).status_code
                    assert told == code, "of two it is Authorization that counts"
        await at_rest(gateway)


REVOKE = """
import asyncio, os, sys, time
from pathlib import Path
from adapters.db import Database
from gateway.keys import KeyService

async def main() -> None:
    home = Path(sys.argv[1])
    db = Database.open(f"sqlite:///{home / 'loragate.db'}")
    keys = await KeyService.open(db, home, clock=time.time, random_bytes=os.urandom)
    await keys.revoke(sys.argv[2], keys.root)
    db.close()

asyncio.run(main())
"""


async def test_a_key_revoked_by_another_process_ends(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        key, own = await counted(gateway), await counted(gateway)
        async with await gateway.http(key) as http, await gateway.http(own) as here, gateway.admin() as admin:
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            argv = [sys.executable, "-c", REVOKE, str(tmp_path), key.split("-")[1]]
            child = await asyncio.create_subprocess_exec(*argv, cwd=tmp_path, env=env)
            assert await child.wait() == 0
            async with asyncio.timeout(30):  # a hang's bound; it is a poll of half a second
                while (answer := await http.post(CHAT, json=ask(CHAT))).status_code == 200:
                    await asyncio.sleep(0.02)
            assert answer.status_code == 401
            # Of this process: when the operator has the answer, it is so.
            assert (await here.post(CHAT, json=ask(CHAT))).status_code == 200
            assert (await admin.delete(f"/admin/v1/keys/{own.split('-')[1]}")).status_code in (200, 204)
            assert (await here.post(CHAT, json=ask(CHAT))).status_code == 401


async def test_a_key_sees_its_models_and_no_others(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path / "data", [engine]) as gateway:
        adapters = gateway.started.gateway.adapters
        full: dict[str, str] = {}
        for seed, name in enumerate(("alpha", "beta"), 1):
            shown = await adapters.register(tiny_lora(tmp_path / name, seed), name, promote=True)
            full[name] = f"{name}@{shown.versions[0].version}"
        key = await counted(gateway, models=frozenset({"alpha"}))
        async with await gateway.http(key) as http, await gateway.http(await counted(gateway)) as all_models:
            listed = (await http.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == ["alpha"]
            assert {model["id"] for model in (await all_models.get("/v1/models")).json()["data"]} == {
                MODEL, "alpha", "beta"
            }  # fmt: skip
            for model in ("alpha", full["alpha"]):
                assert (await http.get(f"/v1/models/{model}")).json()["id"] in ("alpha", full["alpha"])
                assert (await http.post(CHAT, json=ask(CHAT, model=model))).json()["model"] == full["alpha"]
            before = len(engine.inferences)
            hidden = [MODEL, "beta", full["beta"]]
            absent = ["nobody", "ALPHA", "alpha ", "alpha@", f"alpha@{'0' * 12}", "../alpha", "alpha/../beta", "álpha"]
            for model in (*hidden, *absent):
                for path in ROUTES:
                    answer = await http.post(path, json=ask(path, model=model))
                    assert answer.status_code == 404, (path, model, answer.text)
                    error = error_of(path, answer.json())
                    assert path.startswith(MESSAGES) or error["code"] == "model_not_found"
                    assert error["message"].replace(model, "?") == (
                        "The model `?` does not exist or this key may not use it. GET /v1/models lists what it may."
                    )
            for model in hidden:
                assert (await http.get(f"/v1/models/{model}")).status_code == 404
            assert len(engine.inferences) == before
        await at_rest(gateway)


async def test_other_answers_carry_our_request_id_and_no_server(gateway: Running) -> None:
    async with await gateway.http() as http:
        for path in ("/v1/models", "/livez", "/readyz", "/nowhere"):
            answer = await http.get(path, headers={"x-request-id": "canary"})
            assert answer.headers["x-request-id"].startswith("req-")
            assert "server" not in answer.headers
            assert "canary" not in answer.text
