"""The proof on real vLLM: the demo's adapters pass, also in a crowd; weights that are lost, swapped or cut are seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.engine import EngineClient
from adapters.http import open_http
from adapters.proof import Proof, Reference, Verdict, decode, encode, prove
from tests.e2e.fleet_engine import replicas
from tests.e2e.variants import WEIGHTS, copied
from training.demo import BASE_ID

pytestmark = pytest.mark.engine
TRUE, OTHER = "customer-service@000000000001", "financial-qa@000000000002"
EMPTY, PART = "customer-service@000000000003", "customer-service@000000000004"
CROWD = 16


def without(part: str, target: Path) -> Path:
    """The demo's customer-service with the lora_B of every tensor whose name holds `part` set to zero."""
    copied("customer-service", target)
    raw = bytearray((target / WEIGHTS).read_bytes())
    head = 8 + struct.unpack("<Q", raw[:8])[0]
    for tensor, about in json.loads(raw[8:head]).items():
        if part in tensor and "lora_B" in tensor:
            first, last = (head + at for at in about["data_offsets"])
            raw[first:last] = bytes(last - first)
    (target / WEIGHTS).write_bytes(raw)
    return target


@pytest.fixture
async def client(engine_python: Path, tmp_path: Path) -> AsyncIterator[EngineClient]:
    store = tmp_path / "store"
    store.mkdir()
    copied("customer-service", store / TRUE)
    copied("financial-qa", store / OTHER)
    without("", store / EMPTY)
    without("q_proj", store / PART)
    async with open_http() as http, replicas(engine_python, tmp_path, 1) as (engine,):
        client = EngineClient(engine.url, engine.key, store, http)
        for name in (TRUE, OTHER, EMPTY, PART):
            await client.load(name)
        yield client


@contextlib.asynccontextmanager
async def crowd(client: EngineClient) -> AsyncIterator[None]:
    """Other requests without a pause, of all adapters and the base."""
    models = (TRUE, OTHER, PART, BASE_ID)

    async def one(at: int) -> None:
        while True:
            status, _ = await client.complete({"model": models[at % 4], "prompt": f"{at} is", "max_tokens": 40})
            assert status == 200

    running = [asyncio.create_task(one(at)) for at in range(CROWD)]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)


async def test_what_real_vllm_proves(client: EngineClient) -> None:
    first = await prove(client, TRUE, BASE_ID)
    assert (first.verdict, first.reason) == (Verdict.PASSED, "")
    said = decode(encode(first.said))

    async def held(name: str, *, reference: Reference = (), trained: Reference = ()) -> Proof:
        return await prove(client, name, BASE_ID, reference=reference, trained=trained)

    async with crowd(client):
        for _ in range(3):
            assert (await held(TRUE, reference=said)).verdict is Verdict.PASSED
    assert (await held(TRUE, trained=said)).verdict is Verdict.PASSED
    assert (await held(EMPTY)).verdict is Verdict.NO_EFFECT
    for wrong, seen in ((EMPTY, "like the base model"), (OTHER, "3 of 3 prompts"), (PART, "3 of 3 prompts")):
        for found in (await held(wrong, reference=said), await held(wrong, trained=said)):
            assert found.verdict is Verdict.FAILED
            assert seen in found.reason
