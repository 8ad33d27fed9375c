"""More connections than file descriptors: callers beyond the cap are dropped, operators and the rest are answered."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from tests import ports
from tests.fake_vllm import FakeVLLM

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 128
LAUNCH = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
sys.argv = ["loragate", *sys.argv[1:]]
from gateway.cli import main
main()
"""


async def until_listening(http: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                if (await http.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_NOFILE")
async def test_a_flood_of_connections_leaves_the_admin_port_and_new_requests_alone(
    engine: FakeVLLM, tmp_path: Path
) -> None:
    own = [ports.unused(), ports.unused()]
    command = [sys.executable, "-c", LAUNCH, "serve", "--engine", engine.url, "--data-dir", str(tmp_path)]
    command += ["--port", str(own[0]), "--admin-port", str(own[1])]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL)
    writers = []
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            await until_listening(http, f"http://127.0.0.1:{own[0]}")
        for _ in range(LIMIT * 2):
            _, writer = await asyncio.open_connection("127.0.0.1", own[0])
            writers.append(writer)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            assert (await http.get(f"http://127.0.0.1:{own[1]}/livez")).status_code == 200
        for writer in writers:
            writer.close()
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            await until_listening(http, f"http://127.0.0.1:{own[0]}")
    finally:
        for writer in writers:
            writer.transport.abort()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
