"""The probe's knock: an engine that the reconciler has not reached is noticed when it opens, and not before."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

from gateway.probe import Prober
from gateway.settings import Health
from gateway.v1.routing import Fleet, Replica, ReplicaState
from gateway.v1.upstream import Upstream, UpstreamConfig
from tests.fake_vllm import FakeVLLM


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
            async with asyncio.timeout(10):
                await found.wait()
            assert {seen.path for seen in engine.requests} == {"/v1/models"}
    assert replica.state is ReplicaState.STARTING
