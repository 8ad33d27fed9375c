"""GET /admin/v1/adapters/{name}/versions/{version}/files/{file}: the store's bytes, for administrators only."""

from __future__ import annotations

import json
import shutil
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


async def registered(room: AdminRoom) -> tuple[Path, str]:
    """The folder, and the path of its version's files."""
    lora = tiny_lora(room.home / "lora")
    made = (await room.root_client.post(PATH, json={"source": str(lora), "name": "a:b"})).json()
    return lora, f"{PATH}/a:b/versions/{made['versions'][0]['version']}/files"


async def test_the_two_files_come_as_they_are_stored(room: AdminRoom) -> None:
    lora, path = await registered(room)
    weights = await room.root_client.get(f"{path}/adapter_model.safetensors")
    assert (weights.status_code, weights.content) == (200, (lora / "adapter_model.safetensors").read_bytes())
    assert weights.headers["content-length"] == str(len(weights.content))
    assert weights.headers["x-request-id"]
    config = await room.root_client.get(f"{path}/adapter_config.json")
    assert (config.headers["content-type"], config.json()["r"]) == ("application/json", 4)


@pytest.mark.parametrize("file", ["README.md", "..%2Floragate.db", "adapter_config.json%00"])
async def test_nothing_else_is_sent(room: AdminRoom, file: str) -> None:
    _, path = await registered(room)
    answer = await room.root_client.get(f"{path}/{file}")
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_only_administrators_get_weights(room: AdminRoom) -> None:
    _, path = await registered(room)
    for scopes, status in ((("inference",), 403), (("training",), 403), (("admin",), 200)):
        async with room.client((await room.issue(*scopes)).token) as client:
            assert (await client.get(f"{path}/adapter_config.json")).status_code == status, scopes
    async with room.client(None) as stranger:
        assert (await stranger.get(f"{path}/adapter_config.json")).status_code == 401


async def test_what_is_not_there_is_said(room: AdminRoom) -> None:
    _, path = await registered(room)
    for wrong in (f"{PATH}/a:b/versions/{'0' * 12}/files", f"{PATH}/c/versions/{'0' * 12}/files"):
        assert (await room.root_client.get(f"{wrong}/adapter_config.json")).status_code == 404
    (stored,) = (room.home / "adapters").glob("a-b@*")
    shutil.rmtree(stored)
    gone = await room.root_client.get(f"{path}/adapter_config.json")
    assert (gone.status_code, "Register the same folder again" in json.dumps(gone.json())) == (409, True)
