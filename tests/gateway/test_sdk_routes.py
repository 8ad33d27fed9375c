"""Every inference route with the official clients, stream and not; adapters under every kind of name."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.fake_vllm import FakeVLLM
from tests.gateway.plane import (
    CHAT,
    COMPLETIONS,
    COUNT,
    EMBEDDINGS,
    MESSAGES,
    MODEL,
    RESPONSES,
    ROUTES,
    STREAMS,
    ask,
    at_rest,
    counted,
    events,
    quiet,
)
from tests.gateway.running import Running
from tests.gateway.tiny_lora import tiny_lora

HI: Any = [{"role": "user", "content": "one two three"}]
SAID = f"{MODEL}: one two three"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Berlin"]}}}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


@pytest.fixture
async def gateway(engine: FakeVLLM, tmp_path: Path) -> AsyncIterator[Running]:
    async with quiet(tmp_path / "data", [engine]) as up:
        yield up
        await at_rest(up)


@pytest.fixture
async def openai(gateway: Running) -> AsyncIterator[AsyncOpenAI]:
    async with await gateway.openai(await counted(gateway)) as client:
        yield client


@pytest.fixture
async def anthropic(gateway: Running) -> AsyncIterator[AsyncAnthropic]:
    async with await gateway.anthropic(await counted(gateway)) as client:
        yield client


async def test_chat(openai: AsyncOpenAI, engine: FakeVLLM) -> None:
    whole = await openai.chat.completions.create(model=MODEL, messages=HI)
    assert whole.choices[0].message.content == SAID
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 4)

    several = await openai.chat.completions.create(model=MODEL, messages=HI, n=3, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in several.choices] == [SAID] * 3
    logprobs = several.choices[2].logprobs
    assert logprobs is not None
    assert [len(token.top_logprobs) for token in logprobs.content or []] == [2, 2, 2, 2]

    called = await openai.chat.completions.create(model=MODEL, messages=HI, tools=[TOOL])
    (call,) = called.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Berlin"})
    told: Any = [
        *HI,
        called.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = await openai.chat.completions.create(model=MODEL, messages=told, tools=[TOOL])
    assert after.choices[0].message.content == SAID

    cut = await openai.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=2, stop=["three"])
    assert cut.choices[0].finish_reason == "length"
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}}
    await openai.chat.completions.create(model=MODEL, messages=HI, seed=7, temperature=0, extra_body=extra)
    assert extra.items() <= engine.inferences[-1].json().items()


async def test_chat_streams(openai: AsyncOpenAI) -> None:
    for wanted in (False, True):
        options: Any = {"stream_options": {"include_usage": True}} if wanted else {}
        text, finish, usages = "", [], []
        stream = await openai.chat.completions.create(model=MODEL, messages=HI, stream=True, **options)
        async for chunk in stream:
            usages += [chunk.usage] if chunk.usage else []
            assert bool(chunk.choices) != bool(chunk.usage), "usage comes alone, and only at the end"
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish += [choice.finish_reason] if choice.finish_reason else []
        assert (text, finish) == (SAID, ["stop"])
        assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == ([(3, 4)] if wanted else [])

    texts: Counter[int] = Counter()
    several = await openai.chat.completions.create(
        model=MODEL, messages=HI, stream=True, n=3, logprobs=True, top_logprobs=1
    )
    async for chunk in several:
        for choice in chunk.choices:
            texts[choice.index] += len(choice.delta.content or "")
            assert not choice.delta.content or choice.logprobs is not None
    assert texts == {0: len(SAID), 1: len(SAID), 2: len(SAID)}

    arguments, name = "", ""
    async for chunk in await openai.chat.completions.create(model=MODEL, messages=HI, stream=True, tools=[TOOL]):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, json.loads(arguments)) == ("weather", {"city": "Berlin"})


async def test_usage_is_taken_out_byte_for_byte(gateway: Running, engine: FakeVLLM) -> None:
    """Without the wish no event speaks of usage; with vLLM's own wish every one does."""
    async with await gateway.http(await counted(gateway)) as http:
        for path in (CHAT, COMPLETIONS):
            plain = await http.post(path, json=ask(path, stream=True))
            assert b"usage" not in plain.content
            assert events(plain.content)[-1] == ("", "[DONE]")
            options = {"include_usage": True, "continuous_usage_stats": True}
            every = [
                data
                for _, data in events(
                    (await http.post(path, json=ask(path, stream=True, stream_options=options))).content
                )
            ]
            assert all("usage" in data for data in every[:-1])
            once = [
                data
                for _, data in events(
                    (await http.post(path, json=ask(path, stream=True, stream_options={"include_usage": True}))).content
                )
            ]
            assert ["usage" in data for data in once[:-1]] == [False] * (len(once) - 2) + [True]
            assert once[-2]["usage"]["total_tokens"] == every[-2]["usage"]["total_tokens"]
            false = {"include_usage": False, "continuous_usage_stats": True}
            assert b"usage" not in (await http.post(path, json=ask(path, stream=True, stream_options=false))).content


async def test_completions(openai: AsyncOpenAI) -> None:
    one = await openai.completions.create(model=MODEL, prompt="one two three", logprobs=2, echo=True)
    assert one.choices[0].text == "one two three" + SAID
    many = await openai.completions.create(model=MODEL, prompt=["a", "b c", "d"], n=2)
    assert [choice.text for choice in many.choices] == [
        f"{MODEL}: {said}" for said in ("a", "a", "b c", "b c", "d", "d")
    ]
    assert many.usage is not None
    assert many.usage.total_tokens == 4 + 14
    ids = await openai.completions.create(model=MODEL, prompt=[1, 2, 3])
    assert ids.choices[0].text == f"{MODEL}: 1 2 3"
    texts = ["", ""]
    async for chunk in await openai.completions.create(model=MODEL, prompt=["a b", "c"], stream=True):
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [f"{MODEL}: a b", f"{MODEL}: c"]


async def test_embeddings(openai: AsyncOpenAI, engine: FakeVLLM) -> None:
    as_base64 = await openai.embeddings.create(model=MODEL, input=["one", "two three"])  # the client's own default
    assert engine.inferences[-1].json()["encoding_format"] == "base64"
    as_floats = await openai.embeddings.create(model=MODEL, input=["one", "two three"], encoding_format="float")
    assert [item.embedding for item in as_base64.data] == [item.embedding for item in as_floats.data]
    assert len(as_floats.data[1].embedding) == 8
    assert as_floats.usage.prompt_tokens == 3
    assert len((await openai.embeddings.create(model=MODEL, input=[[1, 2], [3]])).data) == 2


async def test_responses(openai: AsyncOpenAI) -> None:
    whole = await openai.responses.create(model=MODEL, input="one two three", instructions="be short")
    assert whole.output_text == SAID
    assert whole.usage is not None
    assert whole.usage.output_tokens == 4
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
    called = await openai.responses.create(model=MODEL, input="one", tools=[tool])
    assert called.output[0].type == "function_call"
    kinds, text = [], ""
    async for event in await openai.responses.create(model=MODEL, input="one two three", stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert (kinds[0], kinds[-1], text) == ("response.created", "response.completed", SAID)
    async with openai.responses.stream(model=MODEL, input="one two three") as stream:
        assert (await stream.get_final_response()).output_text == SAID


async def test_messages(anthropic: AsyncAnthropic) -> None:
    whole = await anthropic.messages.create(model=MODEL, messages=HI, max_tokens=64, system="be short")
    assert [block.text for block in whole.content if block.type == "text"] == [SAID]
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 4)
    counted_ = await anthropic.messages.count_tokens(model=MODEL, messages=HI)
    assert counted_.input_tokens == 3
    tool: Any = {"name": "weather", "input_schema": SCHEMA}
    called = await anthropic.messages.create(model=MODEL, messages=HI, max_tokens=64, tools=[tool])
    assert [(b.name, b.input) for b in called.content if b.type == "tool_use"] == [("weather", {"city": "Berlin"})]
    async with anthropic.messages.stream(model=MODEL, messages=HI, max_tokens=64) as stream:
        assert "".join([text async for text in stream.text_stream]) == SAID
        final = await stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 4)
    async with anthropic.messages.stream(model=MODEL, messages=HI, max_tokens=64, tools=[tool]) as stream:
        assert (await stream.get_final_message()).stop_reason == "tool_use"
    cut = await anthropic.messages.create(model=MODEL, messages=HI, max_tokens=2)
    assert cut.stop_reason == "max_tokens"


NAMES = {"customer-service": "customer-service@{}", "ft:demo-base:acme::x1": "ft-demo-base-acme--x1@{}"}


def models_in(path: str, stream: bool, content: bytes) -> set[str]:
    """Every `model` that an answer names, wherever it stands."""
    documents = [data for _, data in events(content) if isinstance(data, dict)] if stream else [json.loads(content)]
    holders = [document.get("response") or document.get("message") or document for document in documents]
    found = {holder["model"] for holder in holders if "model" in holder}
    assert found or path == COUNT
    return found


async def test_adapters_answer_under_every_kind_of_name(gateway: Running, engine: FakeVLLM, tmp_path: Path) -> None:
    adapters = gateway.started.gateway.adapters
    async with await gateway.http(await counted(gateway)) as http, await gateway.openai() as openai:
        for seed, (name, engine_name) in enumerate(NAMES.items(), 1):
            shown = await adapters.register(tiny_lora(tmp_path / f"{seed}", seed), name, promote=True)
            version = shown.versions[0].version
            full, inner = f"{name}@{version}", engine_name.format(version)
            assert inner in engine.loaded
            for model in (name, full):
                for path in ROUTES:
                    for stream in (False, True) if path in STREAMS else (False,):
                        more: dict[str, Any] = {"stream": True} if stream else {}
                        answer = await http.post(path, json=ask(path, model=model, **more))
                        assert answer.status_code == 200, (path, model, answer.text)
                        assert answer.headers["x-loragate-model"] == full
                        assert engine.inferences[-1].json()["model"] == inner
                        if path != COUNT:
                            assert models_in(path, stream, answer.content) == {full}, (path, stream)
                        if path not in (COUNT, EMBEDDINGS):
                            assert inner.split("@")[0].encode() in answer.content, "what was said is not touched"
            listed = [model async for model in openai.models.list()]
            assert (listed[-1].id, listed[0].id) == (name, MODEL)
            assert (await openai.models.retrieve(name)).id == name
            assert (await openai.models.retrieve(full)).id in (name, full)
        assert len(engine.loaded) == len(NAMES)


async def test_what_a_model_says_is_never_renamed(gateway: Running, engine: FakeVLLM, tmp_path: Path) -> None:
    """The engine's own name in the text stays: only the `model` field is ours."""
    name = "ft:demo-base:acme::x2"
    adapters = gateway.started.gateway.adapters
    shown = await adapters.register(tiny_lora(tmp_path / "x"), name, promote=True)
    version = shown.versions[0].version
    said = f'"model":"{name.replace(":", "-")}@{version}"'
    async with await gateway.http(await counted(gateway)) as http:
        for path in (CHAT, RESPONSES, MESSAGES, COMPLETIONS):
            answer = await http.post(path, json=ask(path, said, model=name))
            assert json.dumps(said)[1:-1].encode() in answer.content
            assert models_in(path, False, answer.content) == {f"{name}@{version}"}


async def test_an_engine_that_restarts_gets_its_adapters_back_with_the_first_request(
    gateway: Running, engine: FakeVLLM, tmp_path: Path
) -> None:
    adapters = gateway.started.gateway.adapters
    shown = await adapters.register(tiny_lora(tmp_path / "x"), "cs", promote=True)
    async with await gateway.http(await counted(gateway)) as http:
        assert (await http.post(CHAT, json=ask(CHAT, model="cs"))).status_code == 200
        await engine.restart()
        loads = len(engine.loads)
        answers = await asyncio.gather(*(http.post(CHAT, json=ask(CHAT, model="cs")) for _ in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20, answers[0].text
        assert {answer.json()["model"] for answer in answers} == {f"cs@{shown.versions[0].version}"}
        assert len(engine.loads) - loads in (1, 2), "they wait for one load; one may have missed its end"
