"""`loragate adapters check`, for people and for programs: all findings, one sentence on stderr, the exit code."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.test_cli_live import loragate
from tests.gateway.tiny_lora import tiny_lora


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened


async def test_one_that_can_be_served(room: AdminRoom) -> None:
    tiny_lora(room.home / "good")
    told = await loragate(room, "adapters", "check", "good")
    assert (told.code, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["verdict", "it can be served"]
    assert ["memory", "128", "B"] in [line.split() for line in lines]
    assert lines[-1].startswith("warn    base_unknown: "), "no engine is running"
    document = (await loragate(room, "adapters", "check", "good", "--json")).document()
    assert (document["ok"], document["memory"]["adapter_bytes"]) == (True, 128)


async def test_one_that_cannot(room: AdminRoom) -> None:
    folder = tiny_lora(room.home / "bad")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True, "r": 8, "\u202e": 1}))
    told = await loragate(room, "adapters", "check", "bad")
    assert told.code == 1
    assert [line.split(":")[0].split() for line in told.stdout.splitlines()] == [
        ["refuse", "dora"],
        ["refuse", "unknown_key"],
        ["refuse", "rank_mismatch"],
        ["warn", "base_unknown"],
    ]
    assert told.stdout.isascii(), "no text of the adapter's reaches the terminal as it is"
    (sentence,) = told.stderr.splitlines()
    assert sentence.startswith("Error: adapter_config.json cannot be served: use_dora is true.")
    assert sentence.endswith("2 more reasons against it: unknown_key, rank_mismatch.")
    programs = await loragate(room, "adapters", "check", "bad", "--json")
    document = programs.document()
    assert (programs.code, document["ok"], document["error"]["code"]) == (1, False, "adapter_rejected")
    assert [each["reason"] for each in document["findings"]][:2] == ["dora", "unknown_key"]
