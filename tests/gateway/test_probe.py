"""When an engine is asked: knocked at until it opens, and at once when the reconciler has reached it."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from gateway.probe import Prober
from gateway.settings import Health
from gateway.v1.routing import Fleet, Replica, ReplicaState
from gateway.v1.upstream import Upstream, UpstreamConfig
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import running


async def test_an_engine_that_opens_late_is_found_and_left_to_the_reconciler() -> None:
    loop = asyncio.get_running_loop()
    async with FakeVLLM() as held:
        url = held.url
    found = asyncio.Event()
    upstream = Upstream(url, UpstreamConfig(), loop=loop, clock=time.monotonic)
    replica = Replica(url, upstream)
    fleet = Fleet((replica,), Health(probe_interval_s=0.02))
    prober = Prober(
        fleet, Health(probe_interval_s=0.02), base=lambda _: None, found=found.set, clock=time.monotonic, loop=loop
    )
    async with aclosing(upstream):
        await prober.probe(replica)
        assert not found.is_set()
        async with FakeVLLM(port=int(url.rpartition(":")[2])) as engine, prober:
            async with asyncio.timeout(30):
                await found.wait()
            assert {seen.path for seen in engine.requests} == {"/v1/models"}
    assert replica.state is ReplicaState.STARTING


async def test_an_engine_that_the_reconciler_has_reached_is_asked_before_the_next_beat() -> None:
    loop = asyncio.get_running_loop()
    slow = Health(probe_interval_s=3600)
    async with FakeVLLM() as engine:
        upstream = Upstream(engine.url, UpstreamConfig(), loop=loop, clock=time.monotonic)
        replica = Replica(engine.url, upstream)
        fleet = Fleet((replica,), slow)
        prober = Prober(fleet, slow, base=lambda _: "demo-base", found=lambda: None, clock=time.monotonic, loop=loop)
        async with aclosing(upstream), prober:
            prober.look()
            async with asyncio.timeout(30):
                while replica.state is not ReplicaState.READY:
                    await asyncio.sleep(0.002)
            assert [seen.path for seen in engine.requests] == ["/v1/completions"]
            prober.look()  # a ready one is left to its beat
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(engine.requests) == 1


async def test_a_gateway_in_front_of_a_running_engine_does_not_wait_for_a_beat(tmp_path: Path) -> None:
    async with FakeVLLM() as engine, running(tmp_path, [engine], health={"probe_interval_s": 3600}) as gateway:
        assert gateway.started.gateway.health.ready()[0]
