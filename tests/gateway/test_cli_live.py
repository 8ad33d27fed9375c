"""The real command as a child process against a real admin port: documents, sentences, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.tiny_lora import tiny_lora

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    code: int
    stdout: str
    stderr: str

    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


async def loragate(room: AdminRoom, *argv: str, **environ: str) -> Ran:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(room.home), "LORAGATE_ADMIN_URL": room.url, "PYTHONPATH": str(ROOT), **environ}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *argv),
        cwd=room.home,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    assert child.returncode is not None
    return Ran(child.returncode, stdout.decode(errors="replace"), stderr.decode())


async def test_the_life_of_a_key(room: AdminRoom) -> None:
    made = await loragate(room, "keys", "create", "--name", "app", "--scope", "admin", "--rpm", "5", "--expires", "1d")
    assert (made.code, made.stdout[:3], made.stdout.count("\n")) == (0, "lg-", 1), "stdout is the key, ready for $(…)"
    assert "cannot be shown again" in made.stderr
    token = made.stdout.strip()
    listed = (await loragate(room, "keys", "list", "--json")).document()
    assert listed["has_more"] is False
    (key,) = listed["data"]
    assert (key["name"], key["rpm"], key["scopes"]) == ("app", 5, ["admin"])
    assert 86_000 < key["expires_at"] - time.time() <= 86_400
    as_boss = await loragate(room, "keys", "show", key["id"], LORAGATE_ADMIN_KEY=token)
    assert (as_boss.code, "UTC" in as_boss.stdout) == (0, True)
    turned = (await loragate(room, "keys", "rotate", key["id"], "--grace", "0s", "--json")).document()
    assert turned["key"] != token
    refused = await loragate(room, "keys", "list", "--json", LORAGATE_ADMIN_KEY=token)
    assert (refused.code, refused.document()["error"]["code"]) == (1, "invalid_api_key")
    assert "LORAGATE_ADMIN_KEY" in refused.stderr
    assert token not in refused.stderr + refused.stdout
    assert (await loragate(room, "keys", "revoke", key["id"])).code == 0
    table = await loragate(room, "keys", "list")
    assert key["id"] in table.stdout
    assert token not in table.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
async def test_a_terminal_without_utf_8_is_no_reason_to_fail(room: AdminRoom, encoding: str) -> None:
    await loragate(room, "keys", "create", "--name", "客服 café")
    shown = await loragate(room, "keys", "list", PYTHONIOENCODING=encoding)
    assert (shown.code, shown.stderr, "?? caf" in shown.stdout) == (0, "", True)
    as_json = await loragate(room, "keys", "list", "--json", PYTHONIOENCODING=encoding)
    assert (as_json.code, as_json.document()["data"][0]["name"]) == (0, "客服 café")


async def test_a_refusal_is_one_sentence_and_exit_1(room: AdminRoom) -> None:
    for argv in (("keys", "show", "AAAAAAAAAAAA"), ("keys", "create", "--name", "")):
        ran = await loragate(room, *argv)
        assert (ran.code, ran.stdout, len(ran.stderr.splitlines())) == (1, "", 1), ran
        as_json = await loragate(room, *argv, "--json")
        assert as_json.code == 1
        assert set(as_json.document()["error"]) == {"message", "type", "param", "code"}


async def test_a_missing_admin_key_is_said(room: AdminRoom) -> None:
    (room.home / "elsewhere").mkdir()
    ran = await loragate(room, "keys", "list", "--data-dir", str(room.home / "elsewhere"))
    assert ran.code == 1
    assert "There is no admin key at" in ran.stderr


async def test_the_life_of_an_adapter(room: AdminRoom) -> None:
    tiny_lora(room.home / "one", 1)
    tiny_lora(room.home / "two", 2)
    checked = await loragate(room, "adapters", "check", "one")
    assert (checked.code, "rank" in checked.stdout) == (0, True), checked
    first = (await loragate(room, "adapters", "register", "one", "--name", "cs", "--promote", "--json")).document()
    second = (await loragate(room, "adapters", "register", "two", "--name", "cs", "--notes", "n", "--json")).document()
    assert second["live"] == first["live"]
    promoted = (await loragate(room, "adapters", "promote", "cs", "--json")).document()
    assert promoted["previous"] == first["live"] != promoted["live"], "without a version: the newest"
    back = await loragate(room, "adapters", "rollback", "cs")
    assert (back.code, str(first["live"]) in back.stdout) == (0, True)
    pasted = f"cs@{promoted['live']}"  # as an answer's `model` has it
    again = (await loragate(room, "adapters", "promote", "cs", pasted, "--json")).document()
    assert again["live"] == promoted["live"]
    odd = await loragate(room, "adapters", "promote", "cs", "newest")
    assert (odd.code, "a version is 12 hex digits" in odd.stderr) == (2, True)
    listed = await loragate(room, "adapters", "list")
    assert "cs" in listed.stdout
    gone = await loragate(room, "adapters", "remove", "cs")
    assert (gone.code, first["live"] in gone.stdout) == (0, True)
    missing = await loragate(room, "adapters", "show", "cs")
    assert (missing.code, missing.stdout) == (1, "")


async def test_a_canary(room: AdminRoom) -> None:
    for n, more in ((1, ("--promote",)), (2, ())):
        tiny_lora(room.home / str(n), n)
        made = (await loragate(room, "adapters", "register", str(n), "--name", "cs", *more, "--json")).document()
    tried = next(v["version"] for v in made["versions"] if v["version"] != made["live"])
    split = ("--percent", "10", "--min-requests", "20", "--max-error-increase", "0.05", "--why", "smaller")
    began = (await loragate(room, "adapters", "canary", "cs", f"cs@{tried}", *split, "--json")).document()
    assert (began["canary"]["version"], began["canary"]["percent"]) == (tried, 10)
    assert began["canary"]["rules"] == {
        "min_requests": 20, "max_error_increase": 0.05, "max_latency_ratio": 1.5, "max_finish_change": 0.15,
    }  # fmt: skip
    shown = await loragate(room, "adapters", "show", "cs")
    assert f"{tried} for 10 % of callers: nothing is compared yet: 0 of 20 canary requests" in shown.stdout
    assert ("FINISH REASONS" in shown.stdout, shown.stdout.count("\nlive")) == (True, 2), shown.stdout
    for wrong in ((tried,), ("--percent", "10"), (tried, "--percent", "10", "--stop"), (tried, "--percent", "0")):
        assert (await loragate(room, "adapters", "canary", "cs", *wrong)).code == 2, wrong
    ended = await loragate(room, "adapters", "canary", "cs", "--stop")
    assert (ended.code, "FINISH REASONS" in ended.stdout) == (0, False)
    again = await loragate(room, "adapters", "canary", "cs", "--stop")
    assert (again.code, "has no canary" in again.stderr) == (1, True)


async def test_usage_and_status(room: AdminRoom) -> None:
    room.recorder.record("k1", "base", 10, 5)
    usage = (await loragate(room, "usage", "--by", "model", "--json")).document()
    assert [(row["model"], row["total_tokens"]) for row in usage["data"]] == [("base", 15)]
    assert "base" in (await loragate(room, "usage")).stdout
    status = await loragate(room, "status")
    assert (status.code, "http://e" in status.stdout, "2027-01-15 08:00 UTC" in status.stdout) == (0, True, True)
    assert (await loragate(room, "status", "--json")).document()["version"] == "1"
