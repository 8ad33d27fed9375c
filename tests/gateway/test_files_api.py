"""/v1/files with the unmodified SDK: what goes up comes down, and each key sees its own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import error_of
from tests.gateway.running import Running, running
from tests.gateway.training_data import preferences, rows

TRAINING = frozenset({"inference", "training"})


async def test_a_file_goes_up_is_listed_comes_down_and_goes(gateway: Running) -> None:
    async with await gateway.openai(await gateway.key(scopes=TRAINING)) as client:
        sent = rows()
        made = await client.files.create(file=("train.jsonl", sent), purpose="fine-tune")
        assert made.id.startswith("file-")
        assert (made.bytes, made.filename, made.purpose, made.status) == (
            len(sent), "train.jsonl", "fine-tune", "processed",
        )  # fmt: skip
        assert made.expires_at is None
        assert (await client.files.retrieve(made.id)) == made
        assert [each.id async for each in client.files.list()] == [made.id]
        assert (await client.files.wait_for_processing(made.id)).id == made.id
        assert (await client.files.content(made.id)).content == sent
        gone = await client.files.delete(made.id)
        assert (gone.id, gone.deleted, gone.object) == (made.id, True, "file")
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            await client.files.retrieve(made.id)
        assert list((gateway.data_dir / "training" / "files").iterdir()) == []


def test_the_sync_client_uploads_too(tmp_path: Path) -> None:
    async def served() -> None:
        async with FakeVLLM() as engine, running(tmp_path, [engine]) as gateway:
            key = await gateway.key(scopes=frozenset({"training"}))

            def used() -> None:
                with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
                    path = tmp_path / "train.jsonl"
                    path.write_bytes(rows())
                    with path.open("rb") as file:
                        made = client.files.create(file=file, purpose="fine-tune")
                    assert made.filename == "train.jsonl"
                    assert client.files.content(made.id).read() == rows()

            await asyncio.to_thread(used)

    asyncio.run(served())


async def test_lists_have_pages_both_ways_and_a_purpose(gateway: Running) -> None:
    async with await gateway.openai(await gateway.key(scopes=TRAINING)) as client:
        ids = [(await client.files.create(file=(f"{i}.jsonl", rows()), purpose="fine-tune")).id for i in range(3)]
        assert [each.id async for each in client.files.list(limit=1)] == ids[::-1]
        assert [each.id async for each in client.files.list(limit=2, order="asc")] == ids
        first = await client.files.list(limit=2, order="asc")
        assert first.has_more
        assert [each.id async for each in client.files.list(purpose="fine-tune-results")] == []
        for query in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "file-nothing"}, {"after": "x" * 200}):
            with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
                await client.files.list(extra_query=query)


async def test_a_file_may_expire(gateway: Running) -> None:
    async with await gateway.openai(await gateway.key(scopes=TRAINING)) as client:
        after: Any = {"anchor": "created_at", "seconds": 3600}
        made = await client.files.create(file=("a.jsonl", rows()), purpose="fine-tune", expires_after=after)
        assert made.expires_at == made.created_at + 3600
        files = gateway.started.gateway.files
        files._clock = lambda: time.time() + 3601
        with pytest.raises(openai.NotFoundError):
            await client.files.content(made.id)
        assert await files.remove_expired() == (made.id,)
        assert list((gateway.data_dir / "training" / "files").iterdir()) == []
        for wrong in ({"anchor": "now", "seconds": 3600}, {"anchor": "created_at", "seconds": 5}, {"seconds": 3600}):
            with pytest.raises(openai.BadRequestError, match="expires_after"):
                await client.files.create(
                    file=("a.jsonl", rows()), purpose="fine-tune", expires_after=wrong  # type: ignore[arg-type]
                )  # fmt: skip


async def test_preference_rows_are_as_good(gateway: Running) -> None:
    async with await gateway.openai(await gateway.key(scopes=TRAINING)) as client:
        assert (await client.files.create(file=("p.jsonl", preferences()), purpose="fine-tune")).status == "processed"


REFUSED: dict[str, tuple[bytes, str]] = {
    "no dictionary": (b"hello\n", "Expected file to have JSONL format"),
    "broken JSON": (rows(3) + b'{"messages": [}\n', "Example 4"),
    "nothing": (b"", "no examples"),
    "no messages": (b'{"prompt": "a"}\n', "Example 1"),
    "large, its last line broken": (rows(6000) + b"[]\n", "Line 6001 is not a dictionary"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_training_file_is_refused_with_its_line_and_not_kept(
    gateway: Running, content: bytes, said: str
) -> None:
    async with await gateway.openai(await gateway.key(scopes=TRAINING)) as client:
        with pytest.raises(openai.BadRequestError, match=said) as refused:
            await client.files.create(file=("train.jsonl", content), purpose="fine-tune")
        assert (refused.value.param, refused.value.code) == ("file", "invalid_file")
        assert [each async for each in client.files.list()] == []
        assert list((gateway.data_dir / "training" / "files").iterdir()) == []


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


PURPOSE = part("purpose", b"fine-tune")
FILE = part("file", rows(), '; filename="a.jsonl"')
MULTIPART = "multipart/form-data; boundary=b"
FORMS: dict[str, tuple[bytes, str, int, str | None, str]] = {
    "no purpose": (FILE + b"--b--\r\n", MULTIPART, 400, "purpose", "'purpose' is a required property"),
    "another purpose": (
        part("purpose", b"batch") + FILE + b"--b--\r\n", MULTIPART, 400, "purpose", "'batch' is not one of"
    ),
    "no file": (PURPOSE + b"--b--\r\n", MULTIPART, 400, "file", "'file' is a required property"),
    "two files": (PURPOSE + FILE + FILE + b"--b--\r\n", MULTIPART, 400, None, "twice"),
    "an odd field": (part("x", b"1") + PURPOSE + FILE + b"--b--\r\n", MULTIPART, 400, None, "nothing else"),
    "a huge field": (part("purpose", b"a" * 5000) + FILE + b"--b--\r\n", MULTIPART, 413, None, "larger than"),
    "no end": (PURPOSE + FILE, MULTIPART, 400, None, "ends in the middle"),
    "no form at all": (b"hello", MULTIPART, 400, None, "multipart"),
    "json": (b"{}", "application/json", 415, None, "multipart/form-data"),
    "no boundary": (b"{}", "multipart/form-data", 415, None, "multipart/form-data"),
    "nothing": (b"", MULTIPART, 400, None, "multipart"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "status", "param", "said"), FORMS.values(), ids=FORMS.keys())
async def test_forms_that_are_wrong(
    gateway: Running, body: bytes, kind: str, status: int, param: str | None, said: str
) -> None:
    async with await gateway.http(await gateway.key(scopes=TRAINING)) as http:
        answer = await http.post("/v1/files", content=body, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
        error = error_of("/v1/files", answer.json())
        assert said in error["message"]
        assert error["param"] == param
        assert answer.headers["x-request-id"].startswith("req-")
        folder = gateway.data_dir / "training" / "files"
        assert not folder.exists() or list(folder.iterdir()) == []
        assert (await http.get("/v1/files")).json()["data"] == []


async def test_the_purpose_may_come_behind_the_file_and_names_lose_their_folders(gateway: Running) -> None:
    async with await gateway.http(await gateway.key(scopes=TRAINING)) as http:
        odd = part("file", rows(), '; filename="..\\\\x/../eté\t\x07\\"a.jsonl"')
        answer = await http.post("/v1/files", content=odd + PURPOSE + b"--b--\r\n", headers={"content-type": MULTIPART})
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert made["purpose"] == "fine-tune"
        assert "/" not in made["filename"]
        assert made["filename"].isprintable()
        got = await http.get(f"/v1/files/{made['id']}/content")
        assert got.content == rows()
        assert got.headers["x-request-id"]
        for name in ("..", "file-..%2f..%2floragate.db", "file-" + "a" * 200):
            for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
                assert (await http.get(path)).status_code == 404
                assert (await http.delete(path)).status_code in (404, 405)


async def test_two_keys_do_not_see_each_other_and_an_admin_sees_both(gateway: Running) -> None:
    keys = [await gateway.key(name, scopes=TRAINING) for name in "ab"]
    async with await gateway.openai(keys[0]) as a, await gateway.openai(keys[1]) as b:
        made = await a.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
        assert [each async for each in b.files.list()] == []
        for call in (b.files.retrieve, b.files.content, b.files.delete):
            with pytest.raises(openai.NotFoundError) as refused:
                await call(made.id)
            assert "No such File object" in str(refused.value)
        with pytest.raises(openai.NotFoundError):
            await b.files.list(after=made.id)
        async with await gateway.openai(await gateway.key(scopes=frozenset({"admin"}))) as admin:
            assert [each.id async for each in admin.files.list()] == [made.id]
            await admin.files.delete(made.id)
        assert [each async for each in a.files.list()] == []


async def test_without_the_scope_nothing_is_read_or_shown(gateway: Running) -> None:
    async with await gateway.openai() as client:
        for call in (
            lambda: client.files.create(file=("a.jsonl", b"a" * 3_000_000), purpose="fine-tune"),
            lambda: client.files.list(),
            lambda: client.files.retrieve("file-1"),
        ):
            with pytest.raises(openai.PermissionDeniedError, match="training"):
                await call()
    async with await gateway.openai("lg-nobody") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.files.create(file=("a.jsonl", b"a" * 3_000_000), purpose="fine-tune")
        with pytest.raises(openai.AuthenticationError):
            await client.files.list()


async def test_methods_that_are_not_answered_say_which_are(gateway: Running) -> None:
    async with await gateway.http(await gateway.key(scopes=TRAINING)) as http:
        for path, allow in {
            "/v1/files": "GET, POST",
            "/v1/files/file-1": "GET, DELETE",
            "/v1/files/file-1/content": "GET",
        }.items():
            answer = await http.request("PATCH", path)
            assert answer.status_code == 405, path
            assert {*answer.headers["allow"].split(", ")} - {"HEAD"} == {*allow.split(", ")}, path


async def test_what_a_key_may_keep_is_bounded_also_where_two_come_at_once(engine: FakeVLLM, tmp_path: Path) -> None:
    size = len(rows())
    async with (
        running(tmp_path, [engine], training={"key_bytes_max": 2 * size + 10}) as gateway,
        await gateway.openai(await gateway.key(scopes=TRAINING)) as client,
    ):
        first = await client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
        answers = await asyncio.gather(
            *(client.files.create(file=("b.jsonl", rows()), purpose="fine-tune") for _ in range(3)),
            return_exceptions=True,
        )
        assert sum(isinstance(each, openai.BadRequestError) for each in answers) == 2
        owner = (await gateway.started.gateway.files.show(first.id)).owner
        files = gateway.started.gateway.files
        async with files.receiving("step_metrics.csv", "fine-tune-results", owner) as incoming:
            await incoming.write(b"step,train_loss\n1,0.5\n")
            results = await files.keep(incoming)  # a job's results have room where its key's files have none
        assert [each.id async for each in client.files.list(purpose="fine-tune-results")] == [results.id]
        assert (await client.files.content(results.id)).text.startswith("step,")
        await client.files.delete(results.id)
        with pytest.raises(openai.BadRequestError, match="larger than the 10 bytes"):
            await client.files.create(file=("c.jsonl", rows()), purpose="fine-tune")
        await client.files.delete(first.id)
        await client.files.create(file=("c.jsonl", rows()), purpose="fine-tune")
        assert len(list((tmp_path / "training" / "files").iterdir())) == 2


async def test_a_caller_that_leaves_in_the_middle_leaves_nothing(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING)
    host, port = "127.0.0.1", gateway.started.public_port
    folder = gateway.data_dir / "training" / "files"
    for left in range(3):
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {MULTIPART}\r\n"
        writer.write(head.encode() + b"content-length: 50000000\r\n\r\n" + PURPOSE + FILE[:-2] + b"a" * 3_000_000)
        await writer.drain()
        async with asyncio.timeout(30):
            while not folder.exists() or not list(folder.iterdir()):
                await asyncio.sleep(0.005)
        if left:
            writer.transport.abort()
        else:
            writer.close()
        async with asyncio.timeout(30):
            while list(folder.iterdir()):
                await asyncio.sleep(0.005)
        writer.close()
    async with await gateway.http(key) as http:
        assert (await http.get("/v1/files")).json()["data"] == []


async def test_no_more_than_four_at_once(gateway: Running) -> None:
    key = await gateway.key(scopes=TRAINING)
    hold = asyncio.Event()

    async def slowly() -> Any:
        yield PURPOSE + FILE[:-2]
        await hold.wait()
        yield b"\r\n--b--\r\n"

    async with await gateway.http(key) as http:
        headers = {"content-type": MULTIPART}
        sending = [asyncio.create_task(http.post("/v1/files", content=slowly(), headers=headers)) for _ in range(4)]
        folder = gateway.data_dir / "training" / "files"
        async with asyncio.timeout(30):
            while not folder.exists() or len(list(folder.iterdir())) < 4:
                await asyncio.sleep(0.005)
        refused = await http.post("/v1/files", content=PURPOSE + FILE + b"--b--\r\n", headers=headers)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        hold.set()
        assert [answer.status_code for answer in await asyncio.gather(*sending)] == [200] * 4


async def test_a_body_that_stops_coming_is_refused_in_time(engine: FakeVLLM, tmp_path: Path) -> None:
    async with running(tmp_path, [engine], receive={"body_timeout_s": 0.05}) as gateway:
        key = await gateway.key(scopes=TRAINING)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.started.public_port)
        head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {MULTIPART}\r\n"
        writer.write(head.encode() + b"content-length: 50000000\r\n\r\n" + PURPOSE)
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{gateway.url}/livez")).status_code == 200
