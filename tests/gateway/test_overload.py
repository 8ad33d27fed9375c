"""More than it can take, and the end of its life: bounded admission, balance over replicas, drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path

import httpx
import pytest

from gateway.server import listen
from gateway.v1.routing import ReplicaState
from tests.fake_vllm import FakeVLLM, Fault
from tests.gateway.child import caller, serving
from tests.gateway.plane import (
    CHAT,
    EMBEDDINGS,
    MESSAGES,
    MODEL,
    RESPONSES,
    STREAMS,
    ask,
    at_rest,
    counted,
    error_of,
    events,
    page,
    quiet,
    total,
)
from tests.gateway.running import Running

NARROW = {"max_in_flight": 2, "max_queue": 2, "queue_timeout_s": 30}


async def until(gateway: Running, in_flight: int, queued: int) -> None:
    """Until so many are being answered and so many wait."""
    admission = gateway.started.gateway.proxy.admission
    async with asyncio.timeout(30):
        while admission.in_flight != in_flight or len([t for t in admission._queue if not t.left]) != queued:
            await asyncio.sleep(0.002)


def refused(answer: httpx.Response, path: str = CHAT) -> None:
    assert answer.status_code == 503, answer.text
    error = error_of(path, answer.json())
    assert error.get("code", "overloaded") == "overloaded"
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert answer.headers.get("x-should-retry") != "false"


async def test_what_does_not_fit_is_refused_at_once_and_never_reaches_the_engine(
    engine: FakeVLLM, tmp_path: Path
) -> None:
    async with quiet(tmp_path, [engine], admission=NARROW) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.STALL_BEFORE_HEAD, times=2)
            stuck = [asyncio.create_task(http.post(CHAT, json=ask(CHAT, stream=True))) for _ in range(2)]
            await until(gateway, 2, 0)
            waiting = [asyncio.create_task(http.post(CHAT, json=ask(CHAT))) for _ in range(2)]
            await until(gateway, 2, 2)
            for path in (*STREAMS, EMBEDDINGS):
                refused(await http.post(path, json=ask(path)), path)
            assert len(engine.inferences) == 2
            assert (await http.get("/livez")).status_code == 200
            assert (await http.get("/v1/models")).status_code == 200
            assert await gateway.metric("loragate_in_flight") == 2
            stuck[0].cancel()
            assert (await waiting[0]).status_code == 200, "the first in the queue gets the first place"
            assert (await waiting[1]).status_code == 200
            stuck[1].cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        shown = await page(gateway)
        assert total(shown, "shed", reason="queue_full") == 5
        assert total(shown, "requests", code="503") == 5
        await at_rest(gateway)


async def test_who_waits_too_long_is_refused_and_who_leaves_the_queue_takes_no_place(
    engine: FakeVLLM, tmp_path: Path
) -> None:
    async with quiet(tmp_path, [engine], admission={**NARROW, "queue_timeout_s": 1.5}) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.STALL_BEFORE_HEAD, times=2)
            stuck = [asyncio.create_task(http.post(CHAT, json=ask(CHAT))) for _ in range(2)]
            await until(gateway, 2, 0)
            late = asyncio.create_task(http.post(MESSAGES, json=ask(MESSAGES)))
            leaver = asyncio.create_task(http.post(CHAT, json=ask(CHAT)))
            await until(gateway, 2, 2)
            leaver.cancel()
            refused(await late, MESSAGES)
            assert len(engine.inferences) == 2
            for task in stuck:
                task.cancel()
            await asyncio.gather(leaver, *stuck, return_exceptions=True)
            answers = await asyncio.gather(*(http.post(CHAT, json=ask(CHAT)) for _ in range(4)))
            assert [answer.status_code for answer in answers] == [200] * 4
        shown = await page(gateway)
        assert total(shown, "shed", reason="queue_timeout") == 1
        await at_rest(gateway)


async def test_ten_times_too_much_leaves_the_rest_working(engine: FakeVLLM, tmp_path: Path) -> None:
    admission = {"max_in_flight": 4, "max_queue": 4, "queue_timeout_s": 5}
    async with quiet(tmp_path, [engine], admission=admission) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.SLOW, times=None, delay=0.02)
            answers = await asyncio.gather(*(http.post(CHAT, json=ask(CHAT, max_tokens=2)) for _ in range(80)))
            codes = [answer.status_code for answer in answers]
            assert set(codes) == {200, 503}
            assert codes.count(200) >= 8
            assert len(engine.inferences) == codes.count(200)
            engine.heal()
            answers = await asyncio.gather(*(http.post(CHAT, json=ask(CHAT)) for _ in range(8)))
            assert {answer.status_code for answer in answers} == {200}
        await at_rest(gateway)


async def test_our_own_full_pool_is_no_fault_of_the_replica(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine], upstream={"max_connections": 2}) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.SLOW, times=2, delay=0.1)
            answers = await asyncio.gather(*(http.post(CHAT, json=ask(CHAT)) for _ in range(12)))
            for answer in answers:
                if answer.status_code != 200:
                    refused(answer)
            codes = [answer.status_code for answer in answers]
            assert codes.count(200) >= 2
            assert codes.count(503) > 5, "more in a row than eject a replica"
            (replica,) = gateway.started.gateway.proxy.fleet.replicas
            assert (replica.state, replica.failures) == (ReplicaState.READY, 0)
            assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        await at_rest(gateway)


async def test_the_least_busy_replica_is_asked(engine: FakeVLLM, tmp_path: Path) -> None:
    async with FakeVLLM() as second, FakeVLLM() as slow, quiet(tmp_path, [engine, second, slow]) as gateway:
        engines = [engine, second, slow]
        async with await gateway.http(await counted(gateway)) as http:
            for one in engines:
                one.script(Fault.SLOW, times=None, delay=0.1)
            await asyncio.gather(*(http.post(CHAT, json=ask(CHAT)) for _ in range(30)))
            assert [len(one.inferences) for one in engines] == [10, 10, 10], "equal ones share equally"
            engine.heal()
            second.heal()

            async def worker() -> None:
                for _ in range(20):
                    assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200

            await asyncio.gather(*(worker() for _ in range(6)))
            fast, also, held = (len(one.inferences) - 10 for one in engines)
            assert fast + also + held == 120
            assert held < 25, "a slow replica keeps its requests longer, so it gets fewer"
        await at_rest(gateway)


# The end ---------------------------------------------------------------------------------------------------


async def read_all(http: httpx.AsyncClient, path: str) -> tuple[int, bytes]:
    async with http.stream("POST", path, json=ask(path, stream=True)) as answer:
        return answer.status_code, await answer.aread()


async def test_a_running_stream_ends_whole_while_readiness_is_off(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine], drain={"delay_s": 3, "timeout_s": 30}) as gateway:
        key = await counted(gateway)
        async with await gateway.http(key) as http, await gateway.http(key) as other, gateway.admin() as admin:
            engine.script(Fault.SLOW, delay=0.12)
            stream = asyncio.create_task(read_all(http, CHAT))
            await engine.working(1)
            assert (await other.get("/readyz")).status_code == 200
            gateway.stop.set()
            await asyncio.sleep(0)
            async with asyncio.timeout(30):
                while (ready := await other.get("/readyz")).status_code == 200:
                    await asyncio.sleep(0)
            assert "shutting down" in ready.text
            assert (await other.get("/livez")).status_code == 200
            assert (await other.post(CHAT, json=ask(CHAT))).status_code == 200, "the balancer may not know yet"
            assert (await admin.get("/readyz")).status_code == 503
            status, body = await stream
            assert status == 200
            assert events(body)[-1] == ("", "[DONE]")
        await gateway.serving
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", gateway.started.public_port)


async def test_at_the_deadline_every_stream_is_told_and_nothing_stays_open(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine], drain={"timeout_s": 0.2}) as gateway:
        async with await gateway.http(await counted(gateway)) as http:
            engine.script(Fault.STALL_BETWEEN, times=4, after=4)
            streams = [asyncio.create_task(read_all(http, path)) for path in STREAMS]
            await engine.working(4)
            engine.script(Fault.STALL_BEFORE_HEAD)
            whole = asyncio.create_task(http.post(CHAT, json=ask(CHAT)))
            await engine.working(5)
            gateway.stop.set()
            for path, task in zip(STREAMS, streams, strict=True):
                status, body = await task
                assert status == 200
                kind, document = events(body)[-1]
                assert kind == ("error" if path == MESSAGES else "")
                assert "shutting down" in error_of(path, document)["message"]
                assert b"[DONE]" not in body
            answer = await whole
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "shutting_down"
            assert answer.headers["connection"] == "close"
        await gateway.serving
        assert engine.live == 0
        assert gateway.started.gateway.metrics.stream_terminated == {("shutdown",): 4}
        proxy = gateway.started.gateway.proxy
        assert (proxy.admission.in_flight, sum(r.outstanding for r in proxy.fleet.replicas)) == (0, 0)


# The process -----------------------------------------------------------------------------------------------


def test_accepted_sockets_never_wait_for_an_acknowledgement() -> None:
    """asyncio leaves it out for sockets made without a protocol number; then two writes cost 40 ms."""
    with contextlib.closing(listen("127.0.0.1", 0, "--port")) as listening, contextlib.ExitStack() as opened:
        opened.enter_context(socket.create_connection(listening.getsockname()))
        with listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_signal_drains_and_the_process_ends_well(engine: FakeVLLM, tmp_path: Path) -> None:
    async with serving(tmp_path, engine) as child:
        async with caller(child) as http:
            engine.script(Fault.SLOW, delay=0.05)
            stream = asyncio.create_task(read_all(http, CHAT))
            await engine.working(1)
            child.process.send_signal(signal.SIGTERM)
            status, body = await stream
            assert status == 200
            assert events(body)[-1] == ("", "[DONE]")
        assert await child.process.wait() == 0
        socket.create_server(("127.0.0.1", child.port)).close()


async def test_a_second_signal_ends_the_drain_at_once(engine: FakeVLLM, tmp_path: Path) -> None:
    async with serving(tmp_path, engine, LORAGATE__DRAIN__TIMEOUT_S="600") as child:
        async with caller(child) as http:
            engine.script(Fault.STALL_BETWEEN, after=4, path=RESPONSES)
            stream = asyncio.create_task(read_all(http, RESPONSES))
            await engine.working(1)
            child.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):  # the listener is closed first: then it has seen the signal
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", child.port)
                    except ConnectionRefusedError:
                        break
                    writer.transport.abort()
                    await asyncio.sleep(0.01)
            assert not stream.done()
            child.process.send_signal(signal.SIGTERM)
            status, body = await stream
            assert (status, events(body)[-1][1]["error"]["code"]) == (200, "shutting_down")
        assert await child.process.wait() == 0


async def test_a_killed_gateway_serves_again_on_the_same_data(engine: FakeVLLM, tmp_path: Path) -> None:
    async with serving(tmp_path, engine) as child, caller(child) as http:
        assert (await http.post(CHAT, json=ask(CHAT))).status_code == 200
        engine.script(Fault.STALL_BEFORE_HEAD)
        lost = asyncio.create_task(http.post(CHAT, json=ask(CHAT)))
        await engine.working(1)
        child.process.kill()
        with pytest.raises(httpx.TransportError):
            await lost
        await asyncio.wait_for(engine.idle(), 30)
    async with (
        serving(tmp_path, engine) as again,
        httpx.AsyncClient(base_url=again.url, trust_env=False, timeout=30) as http,
    ):
        headers = {"authorization": f"Bearer {child.key}"}
        answer = await http.post(CHAT, json=ask(CHAT), headers=headers)
        assert answer.json()["model"] == MODEL
        again.process.send_signal(signal.SIGINT)
        assert await again.process.wait() == 0
