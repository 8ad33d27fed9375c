"""Two gateways on one PostgreSQL and one store, before the same engines: one registry, and nothing goes too early."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.databases import Postgres
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.child import caller, serving
from tests.gateway.plane import CHAT, ask
from tests.gateway.running import Running, running
from tests.gateway.tiny_lora import tiny_lora

pytestmark = pytest.mark.xdist_group("postgresql")  # as in tests/conftest.py

ADAPTERS = "/admin/v1/adapters"


@dataclass
class Pair:
    """Two gateways and what is behind them; keys and adapters are the same for both."""

    one: Running
    two: Running
    engines: list[FakeVLLM]
    database: sa.Engine
    url: str
    data: Path
    key: str

    async def admin(self, gateway: Running, method: str, path: str, body: object = None) -> httpx.Response:
        async with gateway.admin() as http:
            return await http.request(method, f"{ADAPTERS}{path}", json=body)

    async def register(self, gateway: Running, name: str, seed: int, **more: object) -> dict[str, Any]:
        source = str(tiny_lora(self.data / f"sources/{name}-{seed}", seed))
        made = await self.admin(gateway, "POST", "", {"source": source, "name": name, "promote": True, **more})
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    def folders(self) -> set[str]:
        return {folder.name for folder in (self.data / "adapters").iterdir() if "@" in folder.name}

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as conn:
            return [tuple(row) for row in conn.exec_driver_sql(sql)]

    def say(self, sql: str) -> None:
        with self.database.begin() as conn:
            conn.exec_driver_sql(sql)

    async def caught_up(self) -> None:
        """Until every gateway has said that its requests see the registry as it is now."""
        (now,) = self.rows("SELECT n FROM revision")[0]
        await until(lambda: all(seen >= now for (seen,) in self.rows("SELECT revision FROM gateways")))


async def until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@asynccontextmanager
async def paired(url: str, data: Path, engines: list[FakeVLLM]) -> AsyncIterator[Pair]:
    database = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running(data, engines, database_url=url))
        two = await stack.enter_async_context(running(data, engines, database_url=url))
        yield Pair(one, two, engines, database, url, data, await one.key())
    database.dispose()


@pytest.fixture
async def pair(url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    async with FakeVLLM() as first, FakeVLLM() as second, paired(url, tmp_path / "data", [first, second]) as both:
        yield both


@asynccontextmanager
async def streaming(pair: Pair, gateway: Running, model: str) -> AsyncIterator[None]:
    """A request for `model` is in flight at `gateway` for the block."""
    for engine in pair.engines:
        engine.script(Fault.STALL_BETWEEN, model=None, times=None)
    live = sum(engine.live for engine in pair.engines)
    async with (
        await gateway.http(pair.key) as http,
        http.stream("POST", CHAT, json=ask(CHAT, model=model, stream=True)) as answer,
    ):
        await until(lambda: sum(engine.live for engine in pair.engines) > live)
        assert answer.status_code == 200
        for engine in pair.engines:
            engine.heal()
        yield


async def listed(pair: Pair, gateway: Running) -> list[str]:
    async with await gateway.http(pair.key) as http:
        return [model["id"] for model in (await http.get("/v1/models")).json()["data"]]


async def said(pair: Pair, gateway: Running, model: str) -> str:
    async with await gateway.http(pair.key) as http:
        answer = await http.post(CHAT, json=ask(CHAT, model=model))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model"])


async def test_both_see_the_same_registry(pair: Pair) -> None:
    live = (await pair.register(pair.one, "cs", 1))["live"]
    await until(lambda: "cs" in pair.two.started.gateway.proxy.snapshot.models)
    assert await said(pair, pair.two, "cs") == f"cs@{live}"
    assert await listed(pair, pair.one) == await listed(pair, pair.two) == ["demo-base", "cs"]
    newer = (await pair.register(pair.two, "cs", 2))["live"]
    await until(lambda: pair.one.started.gateway.proxy.snapshot.models["cs"].version == newer)
    assert await said(pair, pair.one, "cs") == f"cs@{newer}"
    back = await pair.admin(pair.one, "POST", "/cs/rollback")
    assert back.json()["live"] == live
    await until(lambda: pair.two.started.gateway.proxy.snapshot.models["cs"].version == live)
    assert await said(pair, pair.two, "cs") == f"cs@{live}"
    assert (await pair.admin(pair.two, "DELETE", "/cs")).status_code == 200
    await until(lambda: "cs" not in pair.one.started.gateway.proxy.snapshot.models)
    assert await listed(pair, pair.one) == await listed(pair, pair.two) == ["demo-base"]
    await until(lambda: not pair.folders())


async def test_files_stay_while_another_gateway_may_want_them(pair: Pair, tmp_path: Path) -> None:
    name = f"cs@{(await pair.register(pair.one, 'cs', 1))['live']}"
    await until(lambda: "cs" in pair.two.started.gateway.proxy.snapshot.models)
    async with streaming(pair, pair.two, "cs"):
        assert (await pair.admin(pair.one, "DELETE", "/cs")).status_code == 200
        await pair.caught_up()
        lingering = [row for row in pair.rows("SELECT lingering FROM gateways") if name in row[0]]
        assert len(lingering) == 1
        assert pair.folders() == {name}
        async with running(pair.data, pair.engines, database_url=pair.url):  # a third: its start sweeps the store
            assert len(pair.rows("SELECT id FROM gateways")) == 3
            assert pair.folders() == {name}
    await until(lambda: not pair.folders())
    assert all(name not in engine.loaded for engine in pair.engines)


async def test_what_has_no_part_stays_loaded_while_another_gateway_uses_it(pair: Pair) -> None:
    first = f"cs@{(await pair.register(pair.one, 'cs', 1))['live']}"
    await pair.register(pair.one, "cs", 2)
    await until(lambda: first in pair.two.started.gateway.proxy.snapshot.versions)
    async with streaming(pair, pair.two, first):
        await pair.caught_up()
        await pair.register(pair.one, "cs", 3)
        await pair.caught_up()
        assert any(first in engine.loaded for engine in pair.engines)
    await until(lambda: all(first not in engine.loaded for engine in pair.engines))
    assert first in pair.folders()


async def test_a_gateway_that_died_is_waited_for_no_longer_than_it_counts(pair: Pair) -> None:
    await pair.register(pair.one, "cs", 1)
    now = "extract(epoch from clock_timestamp())"
    pair.say(f"INSERT INTO gateways VALUES ('dying', {now} - 8, 0, '[]'), ('dead', {now} - 100, 0, '[]')")
    assert (await pair.admin(pair.one, "DELETE", "/cs")).status_code == 200
    assert pair.folders(), "one of them has not said yet that it knows"
    await until(lambda: not pair.folders())
    await until(lambda: "dead" not in {row[0] for row in pair.rows("SELECT id FROM gateways")})
    assert "dying" in {row[0] for row in pair.rows("SELECT id FROM gateways")}


async def test_a_gateway_whose_write_waits_for_another_still_counts_as_alive(
    url: str, tmp_path: Path, engine: FakeVLLM, postgres: Postgres
) -> None:
    """Else the other would delete files under its requests."""
    postgres.say(f"ALTER DATABASE {sa.make_url(url).database} SET lock_timeout = '30s'")
    async with paired(url, tmp_path / "data", [engine]) as pair:
        await pair.register(pair.one, "cs", 1)
        with pair.database.begin() as conn:
            conn.exec_driver_sql("SELECT n FROM revision FOR UPDATE")
            removing = asyncio.create_task(pair.admin(pair.one, "DELETE", "/cs"))
            await until(lambda: pair.rows("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            [(last,)] = pair.rows("SELECT max(seen_at) FROM gateways")
            await until(lambda: all(at > last for (at,) in pair.rows("SELECT seen_at FROM gateways")))
            assert not removing.done()
        assert (await removing).status_code == 200


async def test_a_gateway_that_comes_without_the_store_takes_nothing_from_the_others(pair: Pair, tmp_path: Path) -> None:
    """As when its volume is not mounted: what it does not find, the others and the engines have."""
    live = (await pair.register(pair.one, "cs", 1))["live"]
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(pair.data / "pepper", empty)
    before = pair.rows("SELECT n FROM revision")
    engines = [{"url": engine.url, "adapter_dir": str(pair.data / "adapters")} for engine in pair.engines]
    async with running(empty, pair.engines, database_url=pair.url, engines=engines) as third:
        await until(lambda: "cs" in third.started.gateway.proxy.snapshot.models)
        assert pair.rows("SELECT n FROM revision") == before
        assert await said(pair, pair.one, "cs") == await said(pair, third, "cs") == f"cs@{live}"


async def test_a_gateway_that_stops_is_gone_at_once(url: str, tmp_path: Path, engine: FakeVLLM) -> None:
    async with paired(url, tmp_path / "data", [engine]) as pair:
        assert len(pair.rows("SELECT id FROM gateways")) == 2
        pair.two.stop.set()
        await until(lambda: len(pair.rows("SELECT id FROM gateways")) == 1)


async def test_moves_from_both_at_once_leave_one_history(pair: Pair) -> None:
    numbers = random.Random(1)
    made = await asyncio.gather(*(pair.register(g, "cs", seed) for seed, g in enumerate((pair.one, pair.two))))
    assert all(adapter["live"] for adapter in made)
    await pair.register(pair.one, "cs", 2)
    versions = [v["version"] for v in (await pair.admin(pair.one, "GET", "/cs")).json()["versions"]]
    assert len(versions) == 3
    acknowledged: dict[str, str | None] = {}  # why → the version it made live or the canary

    async def move(gateway: Running, number: int) -> None:
        why, version = f"move {number}", numbers.choice(versions)
        verb, body = numbers.choice(
            [
                ("promote", {"version": version}),
                ("rollback", {}),
                ("canary", {"version": version, "percent": 50}),
                ("canary", {"percent": 0}),
            ]
        )
        answer = await pair.admin(gateway, "POST", f"/cs/{verb}", {**body, "why": why})
        assert answer.status_code in (200, 409), answer.text
        if answer.status_code == 200 and verb == "canary":
            acknowledged[why] = version if body.get("percent") else None

    stop = asyncio.Event()

    async def traffic(gateway: Running, user: int) -> int:
        async with await gateway.http(pair.key) as http:
            count = 0
            while not stop.is_set():
                answer = await http.post(CHAT, json=ask(CHAT, model="cs", user=f"{user}-{count}"))
                assert answer.status_code == 200, answer.text
                assert answer.json()["model"] in {f"cs@{version}" for version in versions}
                count += 1
            return count

    gateways = (pair.one, pair.two)
    callers = [asyncio.create_task(traffic(gateway, n)) for n, gateway in enumerate(gateways)]
    for turn in range(12):
        await asyncio.gather(*(move(gateway, 10 * turn + n) for n, gateway in enumerate(gateways * 2)))
    stop.set()
    assert min(await asyncio.gather(*callers)) > 0
    shown = (await pair.admin(pair.two, "GET", "/cs")).json()
    live, canary = replayed(pair.rows("SELECT what, version FROM adapter_events ORDER BY id"))
    assert (live, canary) == (shown["live"], shown["canary"] and shown["canary"]["version"])
    told = {row[0]: row[1] for row in pair.rows("SELECT why, version FROM adapter_events")}
    assert all(why in told for why in acknowledged)
    await until(lambda: len({g.started.gateway.proxy.snapshot.models["cs"].version for g in (pair.one, pair.two)}) == 1)
    assert pair.one.started.gateway.proxy.snapshot.models["cs"].version == live


def replayed(events: Sequence[Sequence[Any]]) -> tuple[str | None, str | None]:
    """The live version and the canary after all of that; fails where an event could not follow the one before."""
    live = canary = None
    for what, version in events:
        if what in ("promoted", "rolled back"):
            assert live != version, "it was live already"
            live = version
            assert canary in (None, version), "a canary ends before its rival goes"
            canary = None
        elif what.startswith("canary ") and what.endswith("%"):
            assert version != live
            canary = version
        elif what == "canary ended":
            assert canary == version
            canary = None
    return live, canary


async def test_more_adapters_than_slots_and_no_request_fails(url: str, tmp_path: Path) -> None:
    async with (
        FakeVLLM(max_loras=2) as first,
        FakeVLLM(max_loras=2) as second,
        paired(url, tmp_path / "data", [first, second]) as pair,
    ):
        names = [f"a{number}" for number in range(8)]
        live = {name: (await pair.register(pair.one, name, seed))["live"] for seed, name in enumerate(names)}
        await until(lambda: set(names) <= set(pair.two.started.gateway.proxy.snapshot.models))

        async def asking(gateway: Running, seed: int) -> None:
            numbers = random.Random(seed)
            async with await gateway.http(pair.key) as http:
                for _ in range(30):
                    name = numbers.choice(names)
                    answer = await http.post(CHAT, json=ask(CHAT, model=name))
                    assert answer.status_code == 200, (name, answer.status_code, answer.text)
                    assert answer.json()["model"] == f"{name}@{live[name]}"

        before = sum(len(engine.loads) for engine in pair.engines)
        await asyncio.gather(*(asking(gateway, seed) for seed, gateway in enumerate((pair.one, pair.two) * 2)))
        loads = sum(len(engine.loads) for engine in pair.engines) - before
        assert loads < 4 * 30, "most requests find what they want: nobody puts out what was just brought"


async def test_two_processes_share_a_data_directory_and_one_may_be_killed(
    url: str, tmp_path: Path, engine: FakeVLLM
) -> None:
    async with (
        serving(tmp_path, engine, LORAGATE__DATABASE_URL=url) as one,
        serving(tmp_path, engine, LORAGATE__DATABASE_URL=url) as two,
        caller(one) as first,
        httpx.AsyncClient(base_url=two.url, headers=first.headers, trust_env=False, timeout=30) as second,
    ):
        async with asyncio.timeout(30):  # a key made at one is known to the other at its next look
            while (await second.get("/v1/models")).status_code != 200:
                await asyncio.sleep(0.02)
        one.process.kill()
        await one.process.wait()
        assert (await second.post(CHAT, json=ask(CHAT))).status_code == 200
