"""A whole gateway on PostgreSQL: what is written there is served, survives a restart, and an outage stops nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.databases import Postgres
from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import CHAT, ask, usage
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

pytestmark = pytest.mark.xdist_group("postgresql")  # as in tests/conftest.py


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    with postgres.database(migrated=False) as url:
        yield url


async def said(gateway: Running, key: str, model: str) -> str:
    async with await gateway.openai(key) as client:
        answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    return answer.model


async def test_from_an_empty_database_to_answers_and_after_a_restart(
    engine: FakeVLLM, tmp_path: Path, url: str
) -> None:
    data = tmp_path / "data"
    async with running(data, [engine], database_url=url) as gateway:
        async with gateway.admin() as admin:
            made = await admin.post("/admin/v1/keys", json={"name": "app", "models": ["cs"]})
            source = str(tiny_lora(tmp_path / "lora"))
            adapter = await admin.post("/admin/v1/adapters", json={"source": source, "name": "cs", "promote": True})
        assert (made.status_code, adapter.status_code) == (201, 201), made.text + adapter.text
        key, version = made.json()["key"], adapter.json()["live"]
        assert await said(gateway, key, "cs") == f"cs@{version}"
        rows = await usage(gateway, group_by="key,model")
        assert [(row["model"], row["requests"]) for row in rows] == [("cs", 1)]
    async with running(data, [engine], database_url=url) as again:
        assert await said(again, key, "cs") == f"cs@{version}"
        rows = await usage(again, group_by="key,model")
        assert [(row["model"], row["requests"]) for row in rows] == [("cs", 2)]
    assert not (data / "loragate.db").exists()


async def test_while_the_database_is_away_known_keys_work_and_readyz_says_why(
    engine: FakeVLLM, tmp_path: Path, url: str, postgres: Postgres
) -> None:
    name = sa.make_url(url).database
    async with running(tmp_path / "data", [engine], database_url=url) as gateway:
        key = await gateway.key()
        postgres.say(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres.say(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        health = gateway.started.gateway.health
        async with asyncio.timeout(30):
            while health.ready()[0]:
                await asyncio.sleep(0.01)
        async with await gateway.http(key) as http:
            readiness = (await http.get("/readyz")).json()
            assert "the registry cannot be read" in readiness["reasons"][0]
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
            async with gateway.admin() as admin:
                refused = await admin.get("/admin/v1/keys")
            assert refused.status_code == 503
            postgres.say(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            async with asyncio.timeout(30):
                while not health.ready()[0]:
                    await asyncio.sleep(0.01)
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        assert [row["requests"] for row in await usage(gateway, group_by="model")] == [2]


async def test_a_database_that_stands_still_is_as_good_as_away(engine: FakeVLLM, tmp_path: Path, url: str) -> None:
    """It takes questions and does not answer: /readyz must not go on saying that all is well."""
    another = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    async with running(tmp_path / "data", [engine], database_url=url) as gateway, gateway.admin() as admin:
        key, health = await gateway.key(), gateway.started.gateway.health
        with another.begin() as conn:
            conn.exec_driver_sql("LOCK TABLE revision IN ACCESS EXCLUSIVE MODE")
            asked = asyncio.create_task(admin.post("/admin/v1/keys", json={"name": "app"}))
            async with asyncio.timeout(20):
                while health.ready()[0]:
                    await asyncio.sleep(0.01)
            assert await said(gateway, key, "demo-base") == "demo-base"
            refused = await asked
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_busy")
        await gateway.until_ready()
