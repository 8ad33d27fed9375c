"""`loragate adapters register|check SOURCE` as a child process: what is sent from here, what is shown meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.client import AdminClient, Place, Refused
from gateway.cli.progress import figures
from tests.adapters.elsewhere import Fault, elsewhere
from tests.adapters.packing import of_folder, tar
from tests.gateway.admin_room import AdminRoom, admin_room
from tests.gateway.test_cli_live import ROOT, loragate
from tests.gateway.tiny_lora import tiny_lora


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[AdminRoom]:
    async with admin_room(tmp_path) as opened:
        yield opened
        assert [name for name in os.listdir(tmp_path / "adapters") if name.startswith(".draft")] == []


def source(adapter: dict[str, Any]) -> str:
    return str(adapter["versions"][0]["source"])


async def test_a_folder_or_archive_is_sent_where_the_gateway_cannot_see_it(room: AdminRoom) -> None:
    tiny_lora(room.home / "mine")
    (room.home / "mine.tgz").write_bytes(of_folder(room.home / "mine"))
    register = ("adapters", "register", "--name", "cs", "--notes", "größer", "--promote", "--json")
    told = await loragate(room, *register, "mine")
    assert (told.code, source(told.document())) == (0, str(room.home / "mine")), told
    elsewhere_url = room.url.replace("127.0.0.1", "0.0.0.0")  # this machine, but not by a name that says so
    for what, expected in (("mine", "upload:mine.tar"), ("mine.tgz", "upload:mine.tgz")):
        await room.root_client.delete("/admin/v1/adapters/cs")
        for ran in (
            await loragate(room, *register, what, LORAGATE_ADMIN_URL=elsewhere_url),
            await loragate(room, *register, what, "--upload"),
        ):
            adapter = ran.document()
            assert (ran.code, ran.stderr, source(adapter)) == (0, "", expected)
            assert (adapter["live"], adapter["versions"][0]["notes"]) == (adapter["versions"][0]["version"], "größer")
    checked = await loragate(room, "adapters", "check", "mine", "--upload", "--json")
    assert (checked.code, checked.document()["ok"]) == (0, True)


async def test_what_cannot_be_sent_is_one_sentence(room: AdminRoom) -> None:
    (room.home / "adapters").mkdir()
    tiny_lora(room.home / "linked")
    (room.home / "linked" / "adapter_config.json").unlink()
    (room.home / "linked" / "adapter_config.json").symlink_to("/etc/hostname")
    (room.home / "junk.zip").write_bytes(b"PK" + bytes(3_000_000))
    for what, words in (
        ("nothing", "There is no folder or archive nothing here"),
        ("linked", "is a symbolic link"),
        ("junk.zip", "This archive cannot be served"),
        ("https://example.org/a.zip", "Leave it out for a URL"),
    ):
        ran = await loragate(room, "adapters", "register", what, "--name", "cs", "--upload", "--json")
        error = ran.document()["error"]
        assert (ran.code, words in error["message"]) == (1, True), ran
        assert set(error) == {"message", "type", "param", "code"}
        assert len(ran.stderr.strip().splitlines()) == 1
    ran = await loragate(room, "adapters", "check", "https://me:hunter2@example.org/a.zip")
    assert (ran.code, ran.stdout, "hunter2" in ran.stderr) == (1, "", False)


def spoilt(room: AdminRoom, name: str, *beside: str) -> str:
    """A good folder under another name, or with more in it."""
    folder = tiny_lora(room.home / name)
    for each in beside:
        (folder / each).write_bytes(b"x")
    return name


async def test_a_folder_that_is_sent_is_judged_as_one_that_the_gateway_reads(room: AdminRoom) -> None:
    """Its two files alone would pass: they say neither that they are a training's start nor that they score."""
    (room.home / "adapters").mkdir()
    for what in (
        spoilt(room, "pissa_backup"),
        spoilt(room, "rm", "value_head.safetensors"),
        spoilt(room, "pkl", "evil.pkl"),
    ):
        there = await loragate(room, "adapters", "check", what, "--json")
        here = await loragate(room, "adapters", "check", what, "--upload", "--json")
        assert (there.code, here.code) == (1, 1)
        document = here.document()
        assert document["error"] == there.document()["error"]
        assert (document["ok"], document["findings"]) == (False, there.document()["findings"][:1])
        people = await loragate(room, "adapters", "check", what, "--upload")
        assert people.stdout.startswith(f"refuse  {document['findings'][0]['reason']}: ")
        ran = await loragate(room, "adapters", "register", what, "--name", "cs", "--upload", "--json")
        assert (ran.code, ran.document()) == (1, {"error": document["error"]})
    assert (await room.root_client.get("/admin/v1/adapters")).json()["data"] == []


class Endless:
    """A form that would be gigabytes, and that counts what is taken of it."""

    kind = "multipart/form-data; boundary=b"
    length = 6 * 2**30

    def __init__(self, name: str) -> None:
        self.taken = 0
        parts = (("name", f"\r\n\r\n{name}\r\n"), ("file", '; filename="a.tar"\r\n\r\n'))
        self.head = "".join(f'--b\r\nContent-Disposition: form-data; name="{part}"{rest}' for part, rest in parts)

    @property
    def pieces(self) -> Iterator[bytes]:
        yield self.head.encode()
        while self.taken < self.length:
            self.taken += 2**16
            yield bytes(2**16)


async def test_a_refused_upload_is_not_sent_to_its_end(room: AdminRoom) -> None:
    (room.home / "adapters").mkdir()
    client, form = AdminClient(Place(room.url, room.root, "test")), Endless("not/a/name")
    with pytest.raises(Refused, match="name"):
        await asyncio.to_thread(client.call, "POST", "/admin/v1/adapters", content=form)
    assert form.taken < 2**30


async def _at_a_terminal(room: AdminRoom, *argv: str) -> tuple[asyncio.subprocess.Process, int]:
    """The command with a terminal as stderr; the process and our end of the terminal."""
    mine, its = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith("LORAGATE")}
    env |= {"LORAGATE_HOME": str(room.home), "LORAGATE_ADMIN_URL": room.url, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *argv), env=env, stdout=asyncio.subprocess.PIPE, stderr=its
    )
    os.close(its)
    os.set_blocking(mine, False)
    return child, mine


async def _until_shown(terminal: int, words: str) -> str:
    seen = ""
    async with asyncio.timeout(30):
        while words not in seen:
            try:
                seen += os.read(terminal, 65536).decode(errors="replace")
            except BlockingIOError:
                await asyncio.sleep(0.01)
    return seen


async def test_a_terminal_shows_how_far_a_fetch_is(room: AdminRoom) -> None:
    tiny_lora(room.home / "mine")
    files = {path.name: path.read_bytes() for path in (room.home / "mine").iterdir()}
    with elsewhere() as web:
        web.files["/a.tar"] = tar({**files, "a.log": bytes(3_000_000)})
        web.faults.append(Fault(after=2_000_000, hang=True))
        argv = ("adapters", "register", f"{web.url}/a.tar", "--name", "cs", "--json")
        child, terminal = await _at_a_terminal(room, *argv)
        try:
            seen = await _until_shown(terminal, "2 MB of 3")
            assert "Fetching" in seen
            web.released.set()
            stdout, _ = await child.communicate()
        finally:
            os.close(terminal)
        assert (child.returncode, json.loads(stdout)["name"]) == (0, "cs")


async def test_a_check_never_says_that_it_loads(room: AdminRoom) -> None:
    (room.home / "adapters").mkdir()
    tiny_lora(room.home / "mine")
    for command, words in ((("check",), "Checking "), (("register", "--name", "cs"), "Checking and loading ")):
        child, terminal = await _at_a_terminal(
            room, "adapters", *command, str(room.home / "mine"), "--upload", "--json"
        )
        try:
            seen = await _until_shown(terminal, words)
            await child.communicate()
        finally:
            os.close(terminal)
        assert ("loading" in seen) == (command[0] == "register")


async def test_control_c_ends_the_fetch_too(room: AdminRoom) -> None:
    with elsewhere() as web:
        web.files["/a.tar"] = tar({"a.log": bytes(3_000_000)})
        web.faults.append(Fault(after=2_000_000, hang=True))
        child, terminal = await _at_a_terminal(room, "adapters", "check", f"{web.url}/a.tar")
        try:
            await _until_shown(terminal, "Fetching")
            child.send_signal(signal.SIGINT)
            stdout, _ = await child.communicate()
        finally:
            os.close(terminal)
        assert (child.returncode, stdout) == (1, b"")
        async with asyncio.timeout(20):
            while (await room.root_client.get("/admin/v1/intakes")).json()["data"]:
                await asyncio.sleep(0.01)


def test_figures() -> None:
    assert figures(0, None, None, None) == ""
    assert figures(1_500_000, None, None, None) == "1.5 MB"
    assert figures(1_500_000, 3_000_000, 5e5, 3.0) == "1.5 MB of 3 MB, 500 kB/s, 3 s left"
