"""A gateway that was stopped for a while (its machine was moved, or suspended) and goes on: all may have changed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from tests.databases import Postgres
from tests.fake_vllm import FakeVLLM
from tests.gateway.child import serving
from tests.gateway.plane import CHAT, ask
from tests.gateway.running import running
from tests.gateway.tiny_lora import tiny_lora

pytestmark = pytest.mark.xdist_group("postgresql")  # as in tests/conftest.py


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


async def test_it_answers_nobody_by_what_it_knew_before(url: str, tmp_path: Path, engine: FakeVLLM) -> None:
    """Requests that came meanwhile wait for one look: no old version, no removed one, no revoked key."""
    database = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    async with running(tmp_path, [engine], database_url=url) as gateway, gateway.admin() as admin:

        async def registered(name: str, seed: int) -> str:
            source = str(tiny_lora(tmp_path / f"sources/{name}-{seed}", seed))
            made = await admin.post(
                "/admin/v1/adapters", json={"source": source, "name": name, "promote": True}, timeout=60
            )
            assert made.status_code == 201, made.text
            return str(made.json()["live"])

        old, gone = await registered("cs", 1), await registered("gone", 2)
        ended = (await admin.post("/admin/v1/keys", json={"name": "ended"})).json()
        async with serving(tmp_path, engine, LORAGATE__DATABASE_URL=url) as child, asyncio.timeout(60):

            async def asked(model: str, key: str) -> tuple[int, str | None]:
                headers = {"authorization": f"Bearer {key}"}
                async with httpx.AsyncClient(base_url=child.url, headers=headers, trust_env=False, timeout=60) as http:
                    answer = await http.post(CHAT, json=ask(CHAT, model=model))
                return answer.status_code, answer.headers.get("x-loragate-model")

            while await asked("cs", ended["key"]) != (200, f"cs@{old}"):
                await asyncio.sleep(0.02)
            assert await asked("gone", child.key) == (200, f"gone@{gone}")
            child.process.send_signal(signal.SIGSTOP)
            try:
                new = await registered("cs", 3)
                assert (await admin.delete("/admin/v1/adapters/gone")).status_code == 200
                assert (await admin.delete(f"/admin/v1/keys/{ended['id']}")).status_code == 200
                with database.connect() as conn:
                    silent = "SELECT max(extract(epoch FROM clock_timestamp()) - seen_at) FROM gateways"
                    while float(conn.exec_driver_sql(silent).scalar_one()) < 4:
                        await asyncio.sleep(0.05)
                pairs = [("cs", child.key), ("gone", child.key), ("cs", ended["key"])] * 3
                asking = [asyncio.create_task(asked(*pair)) for pair in pairs]
                await asyncio.sleep(0.1)  # until they have been sent
            finally:
                child.process.send_signal(signal.SIGCONT)
            assert await asyncio.gather(*asking) == [(200, f"cs@{new}"), (404, None), (401, None)] * 3
    database.dispose()
