"""A hundred megabytes through a gateway of its own process: its memory is watched while they come and go."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import psutil

from tests.fake_vllm import FakeVLLM
from tests.gateway.child import Child, serving

MB = 1024 * 1024
SIZE = 100 * MB


def lines(size: int) -> Iterator[bytes]:
    said = {"role": "user", "content": "x" * 8000}
    line = json.dumps({"messages": [said, {"role": "assistant", "content": "yes"}]}).encode() + b"\n"
    for _ in range(size // len(line)):
        yield line


@asynccontextmanager
async def watched(process: int) -> AsyncIterator[list[int]]:
    """The process's resident bytes, as they were while the block ran."""
    seen: list[int] = []
    of = psutil.Process(process)

    async def watch() -> None:
        while True:
            seen.append(of.memory_info().rss)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def trained(child: Child, home: Path) -> str:
    admin = {"authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        body = {"name": "t", "scopes": ["inference", "training"]}
        return str((await http.post(f"{child.admin_url}/admin/v1/keys", json=body, headers=admin)).json()["key"])


async def test_a_hundred_megabytes_go_through_in_little_memory(engine: FakeVLLM, tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    with file.open("wb") as out:
        out.writelines(lines(SIZE))
    (home := tmp_path / "home").mkdir()
    async with serving(home, engine) as child:
        key = await trained(child, home)
        async with openai.AsyncOpenAI(base_url=f"{child.url}/v1", api_key=key, max_retries=0, timeout=300) as client:
            await client.files.list()  # everything is imported, every pool is there
            before = psutil.Process(child.process.pid).memory_info().rss
            async with watched(child.process.pid) as seen:
                with file.open("rb") as sent:
                    made = await client.files.create(file=sent, purpose="fine-tune")
                digest = hashlib.sha256()
                async with client.files.with_streaming_response.content(made.id) as content:
                    async for chunk in content.iter_bytes():
                        digest.update(chunk)
            assert made.bytes == file.stat().st_size
            assert digest.hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()
            assert max(seen) - before < 24 * MB, (before / MB, max(seen) / MB)
            # It answered others meanwhile, and goes on to.
            assert (await client.models.list()).data


async def test_a_body_without_a_length_and_one_that_is_too_large(engine: FakeVLLM, tmp_path: Path) -> None:
    async with serving(tmp_path, engine, LORAGATE__TRAINING__KEY_BYTES_MAX=str(30 * MB)) as child:
        key = await trained(child, tmp_path)
        headers = {"authorization": f"Bearer {key}", "content-type": "multipart/form-data; boundary=b"}
        head = (
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        )

        async def body(size: int) -> AsyncIterator[bytes]:
            yield head
            for line in lines(size):
                yield line
            yield b"\r\n--b--\r\n"

        async with httpx.AsyncClient(trust_env=False, timeout=120) as http:
            answer = await http.post(f"{child.url}/v1/files", content=body(20 * MB), headers=headers)
            assert answer.status_code == 200, answer.text
            # Nobody knows how much comes: the bound is met on the way. The gateway says so, and hangs up.
            answer = await http.post(f"{child.url}/v1/files", content=body(100 * MB), headers=headers)
            assert answer.status_code == 400
            assert "larger than" in answer.json()["error"]["message"]
            answer = await http.get(f"{child.url}/v1/files", headers={"authorization": f"Bearer {key}"})
            assert len(answer.json()["data"]) == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", child.port)
        start = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        writer.write(f"{start}content-length: {600 * MB}\r\n\r\n".encode())
        assert b" 413 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert len(list((tmp_path / "training" / "files").iterdir())) == 1
