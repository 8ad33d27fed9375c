"""Adapters sent through the admin port: streamed to disk, judged like any other, gone without a trace when refused."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapters.sources.incoming import Draft
from tests.adapters.elsewhere import Fault, elsewhere
from tests.adapters.packing import CONFIG, WEIGHTS, of_folder, tar, zipped
from tests.fake_vllm import FakeVLLM
from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.child import serving
from tests.gateway.tiny_lora import tiny_lora

PATH = "/admin/v1/adapters"
MIB = 1024 * 1024


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened
        drafts = [name for name in os.listdir(tmp_path / "adapters") if name.startswith(".draft")]
        assert drafts == []


def packed(home: Path, seed: int = 1) -> bytes:
    tiny_lora(home / f"lora-{seed}", seed)
    return of_folder(home / f"lora-{seed}", top="out/")


async def post(
    room: AdminRoom, data: bytes, path: str = PATH, filename: str = "a.tar.gz", **fields: str
) -> httpx.Response:
    return await room.root_client.post(path, data=fields, files={"file": (filename, data)})


def error(response: httpx.Response) -> tuple[int, str, str]:
    found: dict[str, Any] = response.json()["error"]
    return response.status_code, found["code"], found["message"]


async def test_an_uploaded_adapter_is_registered_as_any_other(room: AdminRoom) -> None:
    data = packed(room.home)
    answer = await post(room, data, name="cs", promote="true", notes="from my laptop")
    assert answer.status_code == 201, answer.text
    (version,) = answer.json()["versions"]
    assert (version["source"], version["notes"], version["state"]) == ("upload:a.tar.gz", "from my laptop", "live")
    told = await room.root_client.post(PATH, json={"source": str(room.home / "lora-1"), "name": "cs"})
    assert [each["version"] for each in told.json()["versions"]] == [version["version"]], "the same content"
    plain = await post(room, zipped({n: (room.home / "lora-1" / n).read_bytes() for n in (CONFIG, WEIGHTS)}), name="cs")
    assert [each["version"] for each in plain.json()["versions"]] == [version["version"]]


async def test_an_upload_can_be_checked_only(room: AdminRoom) -> None:
    answer = await post(room, packed(room.home), f"{PATH}/check")
    assert (answer.status_code, answer.json()["ok"], answer.json()["rank"]) == (200, True, 4)
    assert (await room.root_client.get(PATH)).json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({}, 400, "name"),
        ({"name": "../x"}, 400, "name"),
        ({"name": "cs", "colour": "red"}, 400, "colour"),
        ({"name": "cs", "promote": "perhaps"}, 400, "promote"),
        ({"name": "cs", "source": "/etc"}, 400, "either"),
        ({"name": "cs", "notes": "x" * 5000}, 400, "notes"),
        ({"name": "cs", "notes": "x" * 20_000}, 413, "16384 bytes"),
    ],
)
async def test_fields_are_held_to_the_same_rules(
    room: AdminRoom, fields: dict[str, str], status: int, words: str
) -> None:
    (room.home / "adapters").mkdir()
    answer = await post(room, packed(room.home), **fields)
    assert (answer.status_code, words in error(answer)[2]) == (status, True), answer.text


async def test_what_is_no_adapter_and_what_is_no_form(room: AdminRoom) -> None:
    (room.home / "adapters").mkdir()
    assert error(await post(room, b"junk", name="cs"))[1] == "adapter_rejected"
    assert "pickle" in error(await post(room, tar({CONFIG: b"{}", "adapter_model.bin": b""}), name="cs"))[2]
    form = {"content-type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'
    for body in (b"", b"{}", head, head + tar()[:5000], head + b"\r\n--b\r\n", b"--b\r\n\r\n\r\n--b--"):
        status, code, message = error(await room.root_client.post(PATH, content=body, headers=form))
        assert (status, code, "not multipart" in message) == (400, "invalid_value", True), body[:50]
    twice = head + b"x\r\n" + head + b"x\r\n--b--"
    assert "same part twice" in error(await room.root_client.post(PATH, content=twice, headers=form))[2]
    only = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\ncs\r\n--b--\r\n'
    assert "no part `file`" in error(await room.root_client.post(PATH, content=only, headers=form))[2]


async def test_a_stranger_sends_no_byte_to_disk(room: AdminRoom) -> None:
    (room.home / "adapters").mkdir()
    reader, data = await room.issue("inference"), packed(room.home)
    for token, status in ((None, 401), ("lg-nobody", 401), (reader.token, 403)):
        async with room.client(token) as http:
            answer = await http.post(PATH, data={"name": "cs"}, files={"file": ("a.tar.gz", data)})
        assert answer.status_code == status


async def test_every_other_body_stays_small(room: AdminRoom) -> None:
    (room.home / "adapters").mkdir()
    large = {"file": ("a", bytes(2 * MIB))}
    assert (await room.root_client.post("/admin/v1/keys", files=large)).status_code == 413
    assert (await room.root_client.post(f"{PATH}/cs/promote", files=large)).status_code == 413
    assert (await room.root_client.post(PATH, content=bytes(2 * MIB))).status_code == 413
    assert (await room.root_client.post(PATH, content=b"x", headers={"content-type": "text/plain"})).status_code == 415


async def test_twenty_uploads_at_once(room: AdminRoom) -> None:
    bodies = [await asyncio.to_thread(packed, room.home, seed) for seed in range(20)]
    answers = await asyncio.gather(*(post(room, data, name=f"a{n}") for n, data in enumerate(bodies)))
    assert [answer.status_code for answer in answers] == [201] * 20
    assert (await room.root_client.get("/admin/v1/intakes")).json() == {"data": [], "has_more": False}


async def test_a_fetch_is_listed_and_ends_with_its_caller(room: AdminRoom) -> None:
    with elsewhere() as web:
        web.files["/a.tar"] = tar({CONFIG: b"{}", WEIGHTS: os.urandom(3 * MIB)})
        web.faults.append(Fault(after=2 * MIB, hang=True))
        body = {"source": f"{web.url}/a.tar?token=secret", "name": "cs"}
        asking = asyncio.ensure_future(room.root_client.post(PATH, json=body))
        await asyncio.to_thread(web.hanging.wait)
        async with room.client(room.root) as http:
            (listed,) = (await http.get("/admin/v1/intakes")).json()["data"]
            assert set(listed) == {"id", "name", "source", "phase", "bytes_done", "bytes_total", "started_at"}
            assert (listed["name"], listed["source"], listed["phase"]) == ("cs", f"{web.url}/a.tar", "fetching")
            asking.cancel()
            async with asyncio.timeout(20):
                while (await http.get("/admin/v1/intakes")).json()["data"]:
                    await asyncio.sleep(0.01)
            assert os.listdir(room.home / "adapters") == [], "though the server still hangs"


async def test_who_hangs_up_in_the_middle_of_an_upload_leaves_nothing(room: AdminRoom) -> None:
    writer = await _begun(room.url, room.root, 3 * MIB)
    store = room.home / "adapters"
    await _until(lambda: bool(list(store.glob(".draft-in-*/archive"))))
    writer.close()
    await writer.wait_closed()
    await _until(lambda: os.listdir(store) == [])


async def test_a_form_that_only_begins_ends_with_the_draft_it_is(tmp_path: Path) -> None:
    """kill -9 in the middle of an upload: the next start finds the draft and sweeps it; nothing was kept in memory."""
    async with FakeVLLM() as engine:
        store = tmp_path / "adapters"
        async with serving(tmp_path, engine) as child:
            process = psutil.Process(child.process.pid)
            before = process.memory_info().rss
            root = (tmp_path / "admin.key").read_text().strip()
            writer = await _begun(child.admin_url, root, 64 * MIB)
            await _until(lambda: sum(each.stat().st_size for each in store.glob(".draft-in-*/archive")) >= 60 * MIB)
            assert process.memory_info().rss - before < 32 * MIB
            os.kill(child.process.pid, signal.SIGKILL)
            await child.process.wait()
            writer.close()
        assert len(list(store.glob(".draft-in-*"))) == 1
        mine = await asyncio.to_thread(Draft, store)  # what is in use elsewhere is left alone
        async with serving(tmp_path, engine):
            assert [each.name for each in store.glob(".draft-*")] == [mine.folder.name]
        mine.close()


async def _begun(url: str, key: str, size: int) -> asyncio.StreamWriter:
    """An upload of which `size` bytes are sent, and never the end."""
    address = httpx.URL(url)
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {10**8}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'.encode()
    )
    piece = struct.pack("<Q", 7) * 8192
    for _ in range(size // len(piece) + 20):  # some more: the last MiB stays in memory until it is whole
        writer.write(piece)
        await writer.drain()
    return writer


async def _until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)
