"""The engine client: vLLM's true answers become yes or one clean sentence, and nothing of the engine's text shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from adapters.engine import EngineClient, EngineModel, EngineUnreachable
from adapters.errors import EngineError
from adapters.http import open_http
from tests.fake_adapters import write_adapter
from tests.fake_vllm import FakeVLLM, Fault
from tests.scripted_server import Peer, ScriptedServer

NAME = "customer-service@0123456789ab"
LOAD = "/v1/load_lora_adapter"


@pytest.fixture
async def engine() -> AsyncIterator[FakeVLLM]:
    async with FakeVLLM() as started:
        yield started


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with open_http() as client:
        yield client


@pytest.fixture
def client(engine: FakeVLLM, http: httpx.AsyncClient, tmp_path: Path) -> EngineClient:
    return EngineClient(engine.url + "/", None, tmp_path, http)


async def test_models_load_and_unload(client: EngineClient, engine: FakeVLLM, tmp_path: Path) -> None:
    write_adapter(tmp_path / NAME)
    assert await client.models() == (EngineModel("demo-base", "demo-base", None, 4096),)
    await client.load(NAME)
    await client.load(NAME)  # 400 "has already been loaded"
    assert (await client.models())[1] == EngineModel(NAME, str(tmp_path / NAME), "demo-base", None)
    assert engine.loaded == {NAME: str(tmp_path / NAME)}
    await client.unload(NAME)
    await client.unload(NAME)  # 404 "cannot be found"
    assert engine.loaded == {}
    assert await client.version() == "0.32.0"


async def test_our_key_is_sent_and_a_wrong_one_explained(http: httpx.AsyncClient, tmp_path: Path) -> None:
    async with FakeVLLM(api_key="right") as engine:
        assert await EngineClient(engine.url, "right", tmp_path, http).models()
        wrong = EngineClient(engine.url, "wrong", tmp_path, http)
        with pytest.raises(EngineError, match="api_key"):
            await wrong.models()
        assert "wrong" not in repr(wrong)


async def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_for_ever(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    async def drips(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            await peer.send(b" ")
            await asyncio.sleep(0.02)

    async with ScriptedServer(drips) as server, asyncio.timeout(30):
        client = EngineClient(server.url, None, tmp_path, http, load_timeout_s=0.3)
        with pytest.raises(EngineError, match=r"does not answer in 0\.3 s"):
            await client.load(NAME)


async def test_any_number_of_slow_loads_leaves_the_questions_to_others_alone(
    client: EngineClient, engine: FakeVLLM, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """As when 100 engines load a large adapter: nobody else may look dead meanwhile."""
    engine.script(Fault.STALL_BEFORE_HEAD, path=LOAD, times=None)
    loads = [asyncio.create_task(client.load(f"a{number}@0123456789ab")) for number in range(100)]
    async with asyncio.timeout(30):
        await engine.seen(100)
    async with FakeVLLM() as another:
        assert await EngineClient(another.url, None, tmp_path, http).models()
    for load in loads:
        load.cancel()
    await asyncio.gather(*loads, return_exceptions=True)


async def test_files_the_engine_cannot_see(client: EngineClient) -> None:
    with pytest.raises(EngineError, match="does not see the files"):
        await client.load(NAME)


async def test_a_rank_too_large(client: EngineClient, tmp_path: Path) -> None:
    write_adapter(tmp_path / NAME, rank=32)
    with pytest.raises(EngineError, match="--max-lora-rank"):
        await client.load(NAME)


@pytest.mark.parametrize("text", ["worker died at /secret/path", '{"error": "CUDA out of memory at /secret/path"}', ""])
async def test_the_engines_own_text_is_never_shown(client: EngineClient, engine: FakeVLLM, text: str) -> None:
    engine.script(Fault.STATUS, path=LOAD, status=500, body=text.encode())
    with pytest.raises(EngineError) as caught:
        await client.load(NAME)
    assert "/secret" not in caught.value.message
    assert caught.value.message.endswith(".")


async def test_an_engine_without_runtime_loading(client: EngineClient, engine: FakeVLLM) -> None:
    engine.script(Fault.STATUS, path=LOAD, status=404, body=b'{"detail":"Not Found"}')
    with pytest.raises(EngineError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        await client.load(NAME)


async def test_a_400_that_is_not_already_loaded_is_a_failure(client: EngineClient, engine: FakeVLLM) -> None:
    engine.script(Fault.STATUS, path=LOAD, status=400, body=b"conflicts with a served base model")
    with pytest.raises(EngineError):
        await client.load(NAME)


@pytest.mark.parametrize("fault", [Fault.NOT_JSON, Fault.HTML_502, Fault.REDIRECT, Fault.STATUS])
async def test_a_model_list_that_is_none(client: EngineClient, engine: FakeVLLM, fault: Fault) -> None:
    engine.script(fault, path="/v1/models")
    with pytest.raises(EngineError) as caught:
        await client.models()
    assert not isinstance(caught.value, EngineUnreachable)
    assert len(engine.requests) == 1  # a redirect is not followed


@pytest.mark.parametrize("body", [b"[]", b'{"data": 3}', b'{"data": [{}]}', b'{"data": [[]]}', b"[" * 100_000])
async def test_odd_model_lists(client: EngineClient, engine: FakeVLLM, body: bytes) -> None:
    engine.script(Fault.STATUS, path="/v1/models", status=200, body=body)
    with pytest.raises(EngineError):
        await client.models()


@pytest.mark.parametrize(
    "fault", [Fault.RESET, Fault.CLOSE_BEFORE_HEAD, Fault.CUT_MID_STREAM, Fault.REFUSE, Fault.NOT_HTTP]
)
async def test_no_answer_is_unreachable(client: EngineClient, engine: FakeVLLM, fault: Fault) -> None:
    engine.script(fault, path="/v1/models")
    with pytest.raises(EngineUnreachable):
        await client.models()


@pytest.mark.parametrize("name", ["../x", "/etc", "org/repo", "customer-service", ""])
async def test_only_engine_names_are_ever_sent(client: EngineClient, engine: FakeVLLM, name: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        await client.load(name)
    assert engine.requests == []
