"""Replicas that come and go under a running gateway: nothing is lost but what ran on an engine that was killed."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.engine import EngineClient
from adapters.reconcile import Reconciler
from gateway.v1.routing import Replica
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.names import HOST, Names, Pods, named, pods, states
from tests.gateway.plane import CHAT, COMPLETIONS, ask, at_rest, events, page, total
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora

A, B, C, D = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
LOAD = "/v1/load_lora_adapter"
SOON_S = 30


async def until(gateway: Running, wanted: dict[str, str]) -> None:
    """Until the replicas are these, in these states."""
    try:
        async with asyncio.timeout(SOON_S):
            while states(gateway) != wanted:
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{states(gateway)} is not {wanted}") from None
    await gateway.until_ready()


def ready(*addresses: str) -> dict[str, str]:
    return dict.fromkeys(addresses, "ready")


async def until_left(gateway: Running) -> None:
    """Until what was sent to replicas that have left is over: a request chosen before may arrive there after."""
    async with asyncio.timeout(SOON_S):
        while gateway.started.gateway.proxy.fleet.leaving:
            await asyncio.sleep(0.005)


class Traffic:
    """Callers that ask without a pause, one after the other; all answers counted."""

    def __init__(self, http: httpx.AsyncClient, callers: int, model: str) -> None:
        self.codes: Counter[int] = Counter()
        self._http = http
        self._model = model
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(callers)]
        self._ended = False

    async def more(self, count: int) -> None:
        """Until so many more answers have come."""
        wanted = self.codes.total() + count
        async with asyncio.timeout(SOON_S):
            while self.codes.total() < wanted:
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        while not self._ended:
            stream = number % 2 == 0
            answer = await self._http.post(CHAT, json=ask(CHAT, model=self._model, stream=stream))
            whole = answer.status_code != 200 or not stream or answer.text.rstrip().endswith("[DONE]")
            self.codes[answer.status_code if whole else 0] += 1


@asynccontextmanager
async def traffic(gateway: Running, callers: int = 6, model: str = "demo-base") -> AsyncIterator[Traffic]:
    async with await gateway.http() as http:
        calling = Traffic(http, callers, model)
        try:
            yield calling
        finally:
            await calling.end()


async def registered(gateway: Running, folder: Path) -> str:
    """A live adapter `support`; its engine name."""
    made = await gateway.started.gateway.adapters.register(folder, "support", promote=True)
    return made.versions[0].engine_name


async def status(gateway: Running) -> dict[str, Any]:
    async with gateway.admin() as http:
        found: dict[str, Any] = (await http.get("/admin/v1/status")).json()
    return found


async def test_replicas_join_and_leave_under_traffic(tmp_path: Path) -> None:
    async with pods() as some:
        one, two = await some.start(A), await some.start(B)
        names = Names(A, B)
        async with named(tmp_path, names, some.port) as gateway:
            await until(gateway, ready(A, B))
            async with traffic(gateway) as calling:
                await calling.more(20)
                three = await some.start(C)
                names.addresses = (A, B, C)
                await until(gateway, ready(A, B, C))
                await calling.more(20)
                names.addresses = (B, C)
                await until(gateway, ready(B, C))
                await until_left(gateway)
                asked = len(one.inferences)
                await calling.more(20)
                assert len(one.inferences) == asked
                names.addresses = (D, A, B)  # one never starts, one comes back
                await until(gateway, {B: "ready", D: "starting", A: "ready"})
                await calling.more(20)
            assert set(calling.codes) == {200}
            assert len(one.inferences) > asked
            assert two.inferences
            assert three.inferences
            hosts = {seen.header("host") for engine in (one, two, three) for seen in engine.requests}
            assert hosts == {f"{HOST}:{some.port}"}
            await at_rest(gateway)


async def test_what_runs_on_a_replica_that_leaves_ends_there_and_its_connections_close(tmp_path: Path) -> None:
    async with pods() as some:
        one, two = await some.start(A), await some.start(B)
        names = Names(A)
        async with named(tmp_path, names, some.port) as gateway, await gateway.http() as http:
            await until(gateway, ready(A))
            one.script(Fault.SLOW, delay=0.05)
            running = asyncio.create_task(http.post(CHAT, json=ask(CHAT, stream=True)))
            await one.working(1)
            [replica] = gateway.started.gateway.proxy.fleet.replicas
            names.addresses = (B,)
            await until(gateway, ready(B))
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
            assert replica.upstream.open_connections
            found = await status(gateway)
            assert found["leaving"] == [{"url": one.url, "outstanding": 1}]
            assert [replica["url"] for replica in found["replicas"]] == [two.url]
            assert (await running).text.rstrip().endswith("[DONE]")
            async with asyncio.timeout(SOON_S):
                while (await status(gateway))["leaving"]:
                    await asyncio.sleep(0.02)
            assert replica.upstream.open_connections == 0


async def test_a_deadline_ends_what_runs_for_too_long_where_a_replica_has_left(tmp_path: Path) -> None:
    async with pods() as some:
        one, _ = await some.start(A), await some.start(B)
        names = Names(A)
        fleet = {"resolve_s": 0.02, "drain_s": 0.3}
        async with named(tmp_path, names, some.port, fleet=fleet) as gateway, await gateway.http() as http:
            await until(gateway, ready(A))
            one.script(Fault.STALL_BETWEEN)
            running = asyncio.create_task(http.post(CHAT, json=ask(CHAT, stream=True)))
            await one.working(1)
            one.script(Fault.STALL_BEFORE_HEAD)
            asked = asyncio.create_task(http.post(CHAT, json=ask(CHAT)))
            await one.working(2)
            names.addresses = (B,)
            assert events((await running).content)[-1][1]["error"]["code"] == "upstream_disconnected"
            assert (await asked).status_code == 200  # nothing of it was seen: another has answered
            await one.idle()
            await until_left(gateway)
            series = {labels for name, labels in await page(gateway) if name == "loragate_upstream_errors_total"}
            assert {dict(labels)["replica"] for labels in series} == {"gone"}


async def test_a_replica_that_comes_back_meanwhile_is_the_same_one(tmp_path: Path) -> None:
    async with pods() as some:
        one, _ = await some.start(A), await some.start(B)
        names = Names(A, B)
        async with named(tmp_path, names, some.port) as gateway, await gateway.http() as http:
            await until(gateway, ready(A, B))
            fleet = gateway.started.gateway.proxy.fleet
            before = next(replica for replica in fleet.replicas if replica.url == one.url)
            one.script(Fault.SLOW, delay=0.1)
            running = [asyncio.create_task(http.post(CHAT, json=ask(CHAT, stream=True))) for _ in range(2)]
            await one.working(1)
            names.addresses = (B,)
            await until(gateway, ready(B))
            names.addresses = (A, B)
            await until(gateway, ready(B, A))
            assert fleet.replicas[1] is before
            assert (before.outstanding, fleet.leaving) == (1, ())
            assert [(await one_of).status_code for one_of in running] == [200, 200]
            await at_rest(gateway)


async def test_what_joins_has_its_adapters_before_it_gets_requests(tmp_path: Path) -> None:
    async with pods() as some:
        await some.start(A)
        names = Names(A)
        async with named(tmp_path / "data", names, some.port) as gateway:
            await until(gateway, ready(A))
            name = await registered(gateway, tiny_lora(tmp_path / "lora"))
            async with traffic(gateway, model="support") as calling:
                await calling.more(10)
                late = await some.start(B)
                late.script(Fault.SLOW, delay=0.2, path=LOAD)
                names.addresses = (A, B)
                await until(gateway, ready(A, B))
                assert list(late.loaded) == [name]
                await calling.more(20)
            assert set(calling.codes) == {200}
            paths = [seen.path for seen in late.requests]
            assert paths.index(LOAD) < paths.index(CHAT)


async def test_while_a_replica_that_joined_cannot_load_the_others_answer(tmp_path: Path) -> None:
    async with pods() as some:
        await some.start(A)
        names = Names(A)
        async with named(tmp_path / "data", names, some.port) as gateway:
            await until(gateway, ready(A))
            await registered(gateway, tiny_lora(tmp_path / "lora"))
            late = await some.start(B)
            late.script(Fault.STALL_BEFORE_HEAD, path=LOAD, times=None)
            names.addresses = (A, B)
            await late.seen(1)
            async with traffic(gateway, model="support") as calling:
                await calling.more(20)
            assert set(calling.codes) == {200}
            assert late.inferences == [] or all(seen.path == COMPLETIONS for seen in late.inferences)
            names.addresses = (A,)  # it leaves in the middle of its load
            await until(gateway, ready(A))
            assert (await status(gateway))["ready"]


async def test_a_promotion_does_not_wait_for_a_replica_that_leaves_in_the_middle_of_it(tmp_path: Path) -> None:
    async with pods() as some:
        one, two = await some.start(A), await some.start(B)
        names = Names(A, B)
        async with named(tmp_path / "data", names, some.port) as gateway:
            await until(gateway, ready(A, B))
            two.script(Fault.STALL_BEFORE_HEAD, path=LOAD, times=None)
            moving = asyncio.create_task(registered(gateway, tiny_lora(tmp_path / "lora")))
            async with asyncio.timeout(SOON_S):
                while not any(seen.path == LOAD for seen in two.requests):
                    await asyncio.sleep(0.005)
            names.addresses = (A,)
            assert list(one.loaded) == [await moving]
            async with await gateway.http() as http:
                assert (await http.post(CHAT, json=ask(CHAT, model="support"))).status_code == 200


async def test_a_replica_that_comes_with_another_base_is_refused_and_says_why(tmp_path: Path) -> None:
    async with pods() as some:
        await some.start(A)
        names = Names(A, B)
        async with AsyncExitStack() as before:
            right = await before.enter_async_context(FakeVLLM(host=B, port=some.port))
            async with named(tmp_path, names, some.port) as gateway:
                await until(gateway, ready(A, B))
                names.addresses = (A,)
                await until(gateway, ready(A))
                await before.aclose()
                wrong = await some.start(B, base="another-base")
                assert wrong.url == right.url
                names.addresses = (A, B)
                await until(gateway, {A: "ready", B: "refused"})
                found = {replica["url"]: replica["reason"] for replica in (await status(gateway))["replicas"]}
                assert found[wrong.url].startswith("It serves another-base (length 4096), the other engines serve")
                async with traffic(gateway) as calling:
                    await calling.more(20)
                assert set(calling.codes) == {200}
                assert all(
                    seen.path == COMPLETIONS for seen in wrong.inferences
                )  # that it has been asked for its slots


async def test_all_addresses_may_change_at_once(tmp_path: Path) -> None:
    """The old engines still answer while the new ones get what they should have; then they get nothing more."""
    async with pods() as some:
        old = [await some.start(A), await some.start(B)]
        names = Names(A, B)
        async with named(tmp_path / "data", names, some.port) as gateway:
            await until(gateway, ready(A, B))
            name = await registered(gateway, tiny_lora(tmp_path / "lora"))
            async with traffic(gateway, model="support") as calling:
                await calling.more(20)
                new = [await some.start(C), await some.start(D)]
                for engine in new:
                    engine.script(Fault.SLOW, delay=0.2, path=LOAD)
                names.addresses = (C, D)
                await until(gateway, ready(C, D))
                await until_left(gateway)
                asked = [len(engine.inferences) for engine in old]
                await calling.more(20)
                assert [len(engine.inferences) for engine in old] == asked
            assert set(calling.codes) == {200}
            assert [list(engine.loaded) for engine in new] == [[name], [name]]


@pytest.mark.parametrize("model", ["demo-base", "support"])
async def test_all_engines_may_be_killed_and_others_come(tmp_path: Path, model: str) -> None:
    """Whoever asks after that waits for the first new one, even before the name says anything new."""
    async with pods() as some:
        old = [await some.start(A), await some.start(B)]
        names = Names(A, B)
        async with named(tmp_path / "data", names, some.port) as gateway, await gateway.http() as http:
            await until(gateway, ready(A, B))
            await registered(gateway, tiny_lora(tmp_path / "lora"))
            assert (await http.post(CHAT, json=ask(CHAT, model=model))).status_code == 200
            for engine in old:
                await engine.stop()
            asked = [asyncio.create_task(http.post(CHAT, json=ask(CHAT, model=model))) for _ in range(20)]
            await asyncio.sleep(0.2)
            assert not any(one.done() for one in asked)
            new = await some.start(C)
            names.addresses = (C,)
            assert [(await one).status_code for one in asked] == [200] * 20
            assert len([seen for seen in new.inferences if seen.path == CHAT]) == 20
            await until(gateway, ready(C))
            await at_rest(gateway)


async def test_where_no_other_comes_callers_are_told(tmp_path: Path) -> None:
    async with pods() as some:
        engine = await some.start(A)
        async with named(tmp_path, Names(A), some.port) as gateway, await gateway.http() as http:
            await until(gateway, ready(A))
            await engine.stop()
            async with asyncio.timeout(SOON_S):
                while states(gateway) != {A: "unreachable"}:
                    await asyncio.sleep(0.005)
            gateway.started.gateway.proxy.fleet.expected_until = 0.0
            answer = await http.post(CHAT, json=ask(CHAT))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_engine_ready")


async def test_a_name_that_stops_answering_takes_no_replica_away(tmp_path: Path) -> None:
    async with pods() as some:
        await some.start(A)
        names = Names(A)
        async with named(tmp_path, names, some.port) as gateway, traffic(gateway) as calling:
            await until(gateway, ready(A))
            names.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            async with asyncio.timeout(SOON_S):
                while (await status(gateway))["discovery"][0]["reason"] is None:
                    await asyncio.sleep(0.01)
            await calling.more(10)
            found = await status(gateway)
            assert (found["ready"], found["reasons"]) == (True, [])
            assert found["discovery"][0]["addresses"] == [A]
        assert calling.codes.pop(200) >= 10
        assert set(calling.codes) <= {503}  # from before it was ready


async def test_a_gateway_starts_without_addresses_and_finds_them_later(tmp_path: Path) -> None:
    async with pods() as some:
        engine = await some.start(A)
        names = Names()
        names.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        async with named(tmp_path, names, some.port) as gateway:
            url = f"http://{HOST}:{some.port}"
            assert gateway.started.gateway.health.ready()[1] == {
                "ready": False,
                "reasons": [f"{url} could not be looked up: Name or service not known"],
                "replicas": [],
            }
            names.error, names.addresses = None, (A,)
            await gateway.until_ready()
            assert states(gateway) == ready(A)
            assert engine.requests


async def test_flapping_addresses_lose_nothing(tmp_path: Path) -> None:
    async with pods() as some:
        await some.start(A)
        await some.start(B)
        names = Names(A, B)
        async with named(tmp_path / "data", names, some.port) as gateway:
            await until(gateway, ready(A, B))
            await registered(gateway, tiny_lora(tmp_path / "lora"))
            async with traffic(gateway, model="support") as calling:
                for turn in range(12):
                    names.addresses = ((A, B), (A,), (A, B), (B,))[turn % 4]
                    asked = names.asked
                    async with asyncio.timeout(SOON_S):
                        while names.asked < asked + 2:
                            await asyncio.sleep(0.002)
                    await calling.more(3)
                names.addresses = (A, B)
                async with asyncio.timeout(SOON_S):
                    while sorted(states(gateway).items()) != sorted(ready(A, B).items()):
                        await asyncio.sleep(0.005)
            assert set(calling.codes) == {200}
            await at_rest(gateway)


async def test_sixty_four_addresses(tmp_path: Path) -> None:
    addresses = [f"127.0.1.{number}" for number in range(1, 65)]
    async with pods() as some:
        engines = [await some.start(address) for address in addresses]
        # 64 times a dozen questions say nothing new, and nor do 1,280 probes a second.
        quiet = {"adapters": {"proof": False}, "health": {"probe_interval_s": 2.0}}
        async with named(tmp_path / "data", Names(*addresses), some.port, **quiet) as gateway:
            await until(gateway, ready(*addresses))
            name = await registered(gateway, tiny_lora(tmp_path / "lora"))
            async with traffic(gateway, 32, model="support") as calling:
                await calling.more(300)
            assert set(calling.codes) == {200}
            assert all(list(engine.loaded) == [name] for engine in engines)
            assert all(any(seen.path == CHAT for seen in engine.inferences) for engine in engines)


async def test_ipv6(tmp_path: Path) -> None:
    """An engine on IPv4, and before it a door on ::1 that lets everything through."""
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    async with AsyncExitStack() as stack:
        some = Pods(stack)
        engine = await some.start(A)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

        async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner = await asyncio.open_connection(A, some.port)
            await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer), return_exceptions=True)

        try:
            door = await asyncio.start_server(through, "::1", some.port)
        except OSError:
            pytest.skip("this machine has no ::1")
        async with door, named(tmp_path, Names("::1"), some.port) as gateway, await gateway.http() as http:
            await until(gateway, ready("[::1]"))
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
            assert {seen.header("host") for seen in engine.requests} == {f"{HOST}:{some.port}"}


async def test_hundreds_that_came_and_went_leave_nothing(tmp_path: Path) -> None:
    def alive() -> dict[str, int]:
        gc.collect()
        found = Counter(type(each) for each in gc.get_objects())
        return {kind.__name__: found[kind] for kind in (Replica, EngineClient, Reconciler)}

    async with pods() as some:
        await some.start(A)
        names = Names(A)
        async with named(tmp_path, names, some.port) as gateway, traffic(gateway, 1) as calling:
            await until(gateway, ready(A))
            fleet, before, tasks = gateway.started.gateway.proxy.fleet, alive(), len(asyncio.all_tasks())
            metrics = gateway.started.gateway.metrics
            for turn in range(25):
                passing = [f"127.1.{turn}.{number}" for number in range(1, 9)]  # nobody listens there
                names.addresses = (A, *passing)
                async with asyncio.timeout(SOON_S):
                    while len(fleet.replicas) < 9 or states(gateway).keys() != {A, *passing}:
                        await asyncio.sleep(0.001)
                metrics.upstream_errors[(fleet.replicas[-1].url, "refused")] = 1
                names.addresses = (A,)
                async with asyncio.timeout(SOON_S):
                    while len(fleet.replicas) > 1:
                        await asyncio.sleep(0.001)
            async with asyncio.timeout(SOON_S):
                while fleet.leaving or len(asyncio.all_tasks()) > tasks:
                    await asyncio.sleep(0.01)
            after = alive()
            assert all(after[kind] < before[kind] + 8 for kind in after), (before, after)  # 200 were there
            assert len(gateway.started.gateway.demand._ahead) <= 1
            text = metrics.render().decode()
            assert "127.1." not in text
            assert total(await page(gateway), "upstream_errors", replica="gone") == 25
            await calling.more(1)
        calling.codes.pop(503, None)  # from before it was ready
        assert set(calling.codes) == {200}
