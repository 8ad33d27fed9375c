"""Every inference route through the official SDKs, against the fake engine."""

from __future__ import annotations

import pytest
from openai import NotFoundError

from tests.fake_vllm import FakeVLLM
from tests.gateway.running import Running


async def test_chat(gateway: Running) -> None:
    async with await gateway.openai() as client:
        answer = await client.chat.completions.create(
            model="demo-base", messages=[{"role": "user", "content": "hi you"}]
        )
    assert answer.choices[0].message.content == "demo-base: hi you"
    assert answer.model == "demo-base"


async def test_unknown_model(gateway: Running, engine: FakeVLLM) -> None:
    async with await gateway.openai() as client:
        with pytest.raises(NotFoundError) as refused:
            await client.chat.completions.create(model="../x", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "model_not_found"
    assert not [seen for seen in engine.inferences if b"../x" in seen.body]


async def test_status_answers_from_the_source_and_from_an_installed_package(gateway: Running) -> None:
    async with gateway.admin() as http:
        answer = await http.get("/admin/v1/status")
    assert answer.status_code == 200
    assert answer.json()["ready"] is True
    assert answer.json()["version"]
