"""The fake engine's slots do what real vLLM 0.32.0 was seen to do with its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.fake_adapters import write_adapter
from tests.fake_slots import digest
from tests.fake_vllm import FakeVLLM

CHAT = "/v1/chat/completions"


@pytest.fixture
async def engine() -> AsyncIterator[FakeVLLM]:
    async with FakeVLLM(max_loras=2, shows_weights=True) as running:
        yield running


@pytest.fixture
async def http(engine: FakeVLLM) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {name: write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("abcd")}


async def _load(http: httpx.AsyncClient, folder: Path) -> None:
    answer = await http.post("/v1/load_lora_adapter", json={"lora_name": folder.name, "lora_path": str(folder)})
    assert answer.status_code == 200, answer.text


async def _unload(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.post("/v1/unload_lora_adapter", json={"lora_name": name})).status_code == 200


async def _ask(http: httpx.AsyncClient, model: str, said: str = "x") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": said}]}
    return await http.post(CHAT, json=body)


def _text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_more_names_than_slots_are_listed_and_right(
    engine: FakeVLLM, http: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    for folder in folders.values():
        await _load(http, folder)
    assert list(engine.loaded) == [*"abcd"]
    assert engine.slots.reads == 0
    assert _text(await _ask(http, "a")) == f"a#{digest(folders['a'])}#demo-base: x"
    assert engine.slots.reads == 1  # in the middle of a step
    assert _text(await _ask(http, "a"))
    assert engine.slots.reads == 1


async def test_a_listed_name_whose_files_are_gone_kills_the_engine(
    engine: FakeVLLM, http: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    engine.gates["hold"] = asyncio.Event()
    for name in "ab":
        await _load(http, folders[name])
    shutil.rmtree(folders["a"])
    assert _text(await _ask(http, "a"))  # in its slot still
    await _ask(http, "b")
    await _load(http, folders["c"])
    held = asyncio.create_task(_ask(http, "b", "hold"))
    await engine.working(1)
    with pytest.raises(httpx.RemoteProtocolError):
        await _ask(http, "a")
    with pytest.raises(httpx.RemoteProtocolError):
        await held  # everything in flight
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    assert len(engine.deaths) == 1
    engine.deaths.clear()
    await engine.restart()
    assert engine.loaded == {}
    assert (await http.get("/health")).status_code == 200


async def test_unloaded_in_flight_and_deleted_it_dies_when_the_slot_is_taken(
    engine: FakeVLLM, http: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    engine.gates["hold"] = asyncio.Event()
    await _load(http, folders["a"])
    held = asyncio.create_task(_ask(http, "a", "hold"))
    await engine.working(1)
    await _unload(http, "a")
    assert (await _ask(http, "a")).status_code == 404
    shutil.rmtree(folders["a"])
    await _load(http, folders["b"])
    other = asyncio.create_task(_ask(http, "b", "hold"))
    await engine.working(2)
    with pytest.raises(httpx.RemoteProtocolError):
        await _load(http, folders["c"])
    ends = await asyncio.gather(held, other, return_exceptions=True)
    assert [type(end) for end in ends] == [httpx.RemoteProtocolError] * 2
    engine.deaths.clear()


async def test_an_unload_frees_the_name_not_the_slot(
    engine: FakeVLLM, http: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    await _load(http, folders["a"])
    await _load(http, folders["b"])
    await _unload(http, "b")
    await _load(http, folders["b"])  # another load: the first one's copy is still there, and pushes "a" out
    assert _text(await _ask(http, "a"))
    assert engine.slots.reads == 1


async def test_a_batch_has_no_more_adapters_than_slots(
    engine: FakeVLLM, http: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    gate = engine.gates["hold"] = asyncio.Event()
    for name in "abc":
        await _load(http, folders[name])
    held = [asyncio.create_task(_ask(http, name, "hold")) for name in "abc"]
    await engine.working(3)
    assert (len(engine.slots.running), len(engine.slots.waiting), engine.slots.most) == (2, 1, 3)
    queued = next(iter(engine.slots.waiting)).name
    await _unload(http, queued)  # it is answered all the same
    gate.set()
    texts = [_text(await one) for one in held]
    assert texts == [f"{name}#{digest(folders[name])}#demo-base: hold" for name in "abc"]
    assert not engine.slots.running


async def test_more_copies_than_slots_need_no_files(tmp_path: Path, folders: dict[str, Path]) -> None:
    async with (
        FakeVLLM(max_loras=2, max_cpu_loras=4) as engine,
        httpx.AsyncClient(base_url=engine.url, trust_env=False) as http,
    ):
        for folder in folders.values():
            await _load(http, folder)
            shutil.rmtree(folder)
        assert [_text(await _ask(http, name)) for name in "abcd"] == [f"{name}: x" for name in "abcd"]
        assert engine.slots.reads == 0


async def test_two_loads_of_one_name_in_one_batch_kill_it(
    engine: FakeVLLM, http: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    engine.gates["hold"] = asyncio.Event()
    await _load(http, folders["a"])
    held = asyncio.create_task(_ask(http, "a", "hold"))
    await engine.working(1)
    await _unload(http, "a")
    await _load(http, folders["a"])
    ends = await asyncio.gather(_ask(http, "a"), held, return_exceptions=True)
    assert [type(end) for end in ends] == [httpx.RemoteProtocolError] * 2
    engine.deaths.clear()
