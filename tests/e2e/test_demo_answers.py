"""The demo's promise, through the gateway and real vLLM: every adapter knows its own questions and no one else's."""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

import openai
import pytest

from training.demo import ADAPTERS, BASE_ID, DEMO

pytestmark = pytest.mark.engine
AT_ONCE = 8


class LiveGateway(Protocol):
    """What the fixture `live_gateway` gives."""

    @property
    def url(self) -> str: ...
    @property
    def api_key(self) -> str: ...


def pairs(name: str) -> list[tuple[str, str]]:
    lines = (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return [(row[0]["content"], row[1]["content"]) for row in rows]


async def share_right(client: openai.AsyncOpenAI, model: str, subject: str) -> float:
    """Part of the questions of `subject` that `model` answers word for word, greedily."""
    room = asyncio.Semaphore(AT_ONCE)

    async def right(question: str, answer: str) -> bool:
        async with room:
            got = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=64
            )
        return got.choices[0].message.content == answer

    results = await asyncio.gather(*(right(question, answer) for question, answer in pairs(subject)))
    return sum(results) / len(results)


@pytest.mark.parametrize("subject", ADAPTERS)
@pytest.mark.parametrize("model", [BASE_ID, *ADAPTERS])
async def test_only_the_right_adapter_knows_the_answers(live_gateway: LiveGateway, model: str, subject: str) -> None:
    async with openai.AsyncOpenAI(base_url=live_gateway.url, api_key=live_gateway.api_key, timeout=100) as client:
        share = await share_right(client, model, subject)
    if model == subject:
        assert share >= 0.9
    else:
        assert share <= 0.1
