"""Every field that docs/fields.md allows is taken by real vLLM, one request with each; what it refuses gets nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.e2e.conftest import Live
from tests.e2e.field_values import BESIDE, ENGINE_REFUSES, REFUSED, REQUIRED, STATELESS, TABLES, VALUES

AT_ONCE = 8


@pytest.fixture
async def http(live_gateway: Live) -> AsyncIterator[httpx.AsyncClient]:
    key = {"authorization": f"Bearer {live_gateway.api_key}"}
    async with httpx.AsyncClient(base_url=live_gateway.url, headers=key, timeout=100, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("route", TABLES)
def test_no_field_is_forgotten_here(route: str) -> None:
    table = TABLES[route]
    assert table.fields.keys() - {*table.required, *VALUES[route], *STATELESS} == set()


@pytest.mark.engine
@pytest.mark.parametrize("route", TABLES)
async def test_every_allowed_field_is_taken(http: httpx.AsyncClient, route: str) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(field: str) -> tuple[str, int, str]:
        beside = BESIDE[route].get(field, {})
        async with room:
            answer = await http.post(f"/{route}", json={**REQUIRED[route], **beside, field: VALUES[route][field]})
        return field, answer.status_code, answer.text

    answers = await asyncio.gather(*(ask(field) for field in VALUES[route] if field in TABLES[route].fields))
    assert [answer for answer in answers if answer[0] not in ENGINE_REFUSES and answer[1] != 200] == []
    for _, status, text in (answer for answer in answers if answer[0] in ENGINE_REFUSES):
        assert status == 400
        assert "reasoning parser" in text


@pytest.mark.engine
@pytest.mark.parametrize("route", TABLES)
async def test_what_is_refused_never_reaches_the_engine(http: httpx.AsyncClient, route: str) -> None:
    for field, value in REFUSED.items():
        answer = await http.post(f"/{route}", json={**REQUIRED[route], field: value})
        assert (answer.status_code, field in answer.text) == (400, True), answer.text


@pytest.mark.engine
async def test_every_kind_of_structured_output(http: httpx.AsyncClient) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}
    kinds = {
        "json": schema,
        "regex": "[ab]{2}",
        "grammar": 'root ::= "yes" | "no"',
        "choice": ["yes", "no"],
        "json_object": True,
    }
    for kind, value in kinds.items():
        body = {**REQUIRED["chat/completions"], "structured_outputs": {kind: value}, "max_tokens": 24}
        answer = await http.post("/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        text = answer.json()["choices"][0]["message"]["content"]
        assert text.strip()[0] in {"json": "[", "regex": "ab", "json_object": "{"}.get(kind, "yn"), (kind, text)
