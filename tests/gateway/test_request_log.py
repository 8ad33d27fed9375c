"""What an operator reads in the log: one line per request where asked for, and the life of engines; never a prompt."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson
import pytest

from gateway.logs import JsonFormatter
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import running

PROMPT = "a-prompt-that-nobody-else-may-read"


@pytest.mark.parametrize("wanted", [True, False])
async def test_requests_are_logged_only_where_asked_for(
    engine: FakeVLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: bool
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, [engine], log={"requests": wanted}) as gateway:
        key = await gateway.key()
        async with await gateway.openai(key) as client:
            await client.chat.completions.create(model="demo-base", messages=[{"role": "user", "content": PROMPT}])
    lines = [orjson.loads(JsonFormatter().format(record)) for record in caplog.records]
    requests = [line for line in lines if line["message"] == "request"]
    assert len(requests) == (1 if wanted else 0)
    for line in requests:
        assert (line["route"], line["model"], line["code"], line["key"]) == ("chat", "demo-base", "200", key[3:15])
    said = " ".join(line["message"] for line in lines)
    assert f"engine {engine.url} is ready" in said
    assert "listening on" in said
    assert "stopping: 0 requests" in said
    assert PROMPT not in str(lines)
    assert key not in str(lines)
