"""The official SDKs against real vLLM, every route, streamed and not: what the demo's model can really do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.conftest import Live
from tests.e2e.field_values import MODEL, QUESTION, SCHEMA
from tests.e2e.test_demo_answers import pairs
from tests.e2e.variants import copied
from training.demo import ADAPTERS, BASE_ID

pytestmark = pytest.mark.engine
MODELS = (BASE_ID, *ADAPTERS)


class Sure(BaseModel):
    sure: Literal["yes", "no"]


@pytest.fixture
async def client(live_gateway: Live) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=live_gateway.url, api_key=live_gateway.api_key, timeout=100, max_retries=0
    ) as sdk:
        yield sdk


@pytest.fixture
async def claude(live_gateway: Live) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's SDK sends the key as `x-api-key` and puts `/v1` behind the address itself."""
    address = live_gateway.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(
        base_url=address, api_key=live_gateway.api_key, timeout=100, max_retries=0
    ) as sdk:
        yield sdk


def chat(model: str = MODEL, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    asked = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 48}
    return asked | more


def message(model: str = MODEL, question: str = QUESTION) -> dict[str, Any]:
    """The same in Anthropic's dialect: its SDK has no argument for the temperature any more, the route has."""
    asked = chat(model, question)
    return asked | {"extra_body": {"temperature": asked.pop("temperature")}}


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> tuple[dict[int, str], list[Any]]:
    """The texts by index, and every chunk."""
    texts: dict[int, str] = {}
    chunks = []
    async for chunk in await client.chat.completions.create(stream=True, **asked):
        chunks.append(chunk)
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts, chunks


# Chat ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
async def test_a_chat_stream_is_the_whole_answer_in_pieces(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.create(**chat(model))
    texts, chunks = await streamed(client, **chat(model))
    assert texts == {0: whole.choices[0].message.content}
    assert {chunk.model for chunk in chunks} == {whole.model}
    assert whole.model == model if model == BASE_ID else whole.model.startswith(f"{model}@")
    assert [c.choices[0].finish_reason for c in chunks][-1] == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks), "usage comes only to those who ask"
    _, chunks = await streamed(client, **chat(model), stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (
        whole.usage.prompt_tokens if whole.usage else None,
        whole.usage.completion_tokens if whole.usage else None,
    )


async def test_stop_and_max_tokens_end_an_answer(client: openai.AsyncOpenAI) -> None:
    whole = (await client.chat.completions.create(**chat())).choices[0]
    assert whole.finish_reason == "stop"
    text = str(whole.message.content)
    stopped = (await client.chat.completions.create(**chat(stop=[","]))).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text.split(",")[0], "stop")
    cut = await client.chat.completions.create(**chat(max_tokens=3))
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 3
    assert text.startswith(str(cut.choices[0].message.content))


async def test_four_answers_and_the_same_four_again_by_seed(client: openai.AsyncOpenAI) -> None:
    asked = chat(BASE_ID, "Tell me about the sea.", temperature=2, seed=11, n=4, max_tokens=24)
    first = await client.chat.completions.create(**asked)
    texts = {choice.index: choice.message.content for choice in first.choices}
    assert len(texts) == 4
    assert len(set(texts.values())) > 1
    assert (await streamed(client, **asked))[0] == texts
    other = await client.chat.completions.create(**{**asked, "seed": 12})
    assert {choice.index: choice.message.content for choice in other.choices} != texts


async def test_logprobs_spell_the_answer(client: openai.AsyncOpenAI) -> None:
    choice = (await client.chat.completions.create(**chat(logprobs=True, top_logprobs=2))).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    spelt = b"".join(bytes(token.bytes or ()) for token in tokens).decode()
    assert spelt.removesuffix("<|im_end|>") == choice.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


async def test_answers_are_held_to_a_schema(client: openai.AsyncOpenAI) -> None:
    """The penalty keeps so small a model from writing blanks, which JSON allows, until it is cut."""
    parsed = await client.chat.completions.parse(**chat(frequency_penalty=2, max_tokens=200), response_format=Sure)
    assert isinstance(parsed.choices[0].message.parsed, Sure)
    wanted = {"type": "json_schema", "json_schema": {"name": "sure", "schema": SCHEMA}}
    texts, _ = await streamed(client, **chat(response_format=wanted, frequency_penalty=2, max_tokens=200))
    assert texts == {0: parsed.choices[0].message.content}
    chosen = await client.chat.completions.create(**chat(), extra_body={"structured_outputs": {"choice": ["blue"]}})
    assert chosen.choices[0].message.content == "blue"


# The other routes ----------------------------------------------------------------------------------------


async def test_completions_one_many_echoed_and_streamed(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}
    prompts = ["Open Settings, choose", "Print the return label"]
    apart = [await client.completions.create(prompt=prompt, **asked) for prompt in prompts]
    together = await client.completions.create(prompt=prompts, **asked)
    texts = [answer.choices[0].text for answer in apart]
    assert [choice.text for choice in sorted(together.choices, key=lambda choice: choice.index)] == texts
    echoed = await client.completions.create(prompt=prompts[0], echo=True, **asked)
    assert echoed.choices[0].text == prompts[0] + texts[0]
    pieces = ["", ""]
    async for chunk in await client.completions.create(prompt=prompts, stream=True, **asked):
        assert chunk.usage is None
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == texts
    scored = await client.completions.create(prompt=prompts[0], logprobs=2, **asked)
    assert scored.choices[0].logprobs is not None
    assert len(scored.choices[0].logprobs.tokens or []) == 12


async def test_responses_streamed_and_whole_say_what_chat_says(client: openai.AsyncOpenAI) -> None:
    told = await client.chat.completions.create(**chat())
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 48}
    whole = await client.responses.create(**asked)
    assert whole.output_text == told.choices[0].message.content
    assert whole.model == told.model
    assert told.usage is not None
    assert whole.usage is not None
    assert whole.usage.output_tokens == told.usage.completion_tokens
    text = ""
    async with client.responses.stream(**asked) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert (final.status, final.model) == ("completed", told.model)
    cut = await client.responses.create(**{**asked, "max_output_tokens": 3})
    assert cut.status == "incomplete"
    again = [{"role": "user", "content": QUESTION}, *whole.output, {"role": "user", "content": QUESTION}]
    assert (await client.responses.create(**{**asked, "input": again})).status in ("completed", "incomplete")
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.responses.create(**asked, previous_response_id=whole.id)
    assert refusal.value.param == "previous_response_id"


async def test_messages_streamed_whole_and_counted(
    client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    told = await client.chat.completions.create(**chat())
    asked = message()
    whole = await claude.messages.create(**asked)
    assert [block.text for block in whole.content if block.type == "text"] == [told.choices[0].message.content]
    assert (whole.stop_reason, whole.model) == ("end_turn", told.model)
    async with claude.messages.stream(**asked) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == told.choices[0].message.content
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    stopped = await claude.messages.create(**asked, stop_sequences=[","])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", ",")
    counted = await claude.messages.count_tokens(model=MODEL, messages=asked["messages"])
    assert counted.input_tokens == whole.usage.input_tokens


async def test_models_are_listed_and_found_also_by_version(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert set(MODELS) <= set(listed)
    assert all("@" not in name for name in listed)
    version = (await client.chat.completions.create(**chat(max_tokens=1))).model
    for name in (MODEL, BASE_ID, version):
        assert (await client.models.retrieve(name)).id == name
    exact = await client.chat.completions.create(**chat(version))
    assert (
        exact.choices[0].message.content == (await client.chat.completions.create(**chat())).choices[0].message.content
    )
    assert exact.model == version
    for unknown in ("nobody", f"{MODEL}@000000000000", "../adapters"):
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(unknown.replace("/", "%2F"))


# Refusals ------------------------------------------------------------------------------------------------


async def test_an_engines_refusals_are_rendered_again(
    client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    long = "word " * 3000
    for streaming in (False, True):
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(**chat(question=long), stream=streaming)
        assert refusal.value.code == "context_length_exceeded"
        assert "2048 tokens" in refusal.value.message
    with pytest.raises(anthropic.BadRequestError, match="2048 tokens"):
        await claude.messages.create(**message(question=long))
    with pytest.raises(openai.APIStatusError) as refusal_:
        await client.embeddings.create(model=MODEL, input="a", encoding_format="float")
    assert (refusal_.value.status_code, refusal_.value.code) == (400, "unsupported_endpoint")
    with pytest.raises(openai.BadRequestError, match="greedy"):
        await client.chat.completions.create(**chat(n=2))
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="tool"):
        await client.chat.completions.create(**chat(tools=[tool]))


async def test_who_may_not_ask_and_what_is_not_there(
    client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    for model in ("nobody", "../customer-service", f"{MODEL}@000000000000", "financial-qa "):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(**chat(model))
        assert missing.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(**message("nobody"))
    with pytest.raises(openai.AuthenticationError) as stranger:
        await client.with_options(api_key="lg-abc-nonsense").chat.completions.create(**chat())
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(anthropic.AuthenticationError):
        await claude.with_options(api_key="nonsense").messages.create(**message())


async def test_the_engines_own_routes_are_not_ours(live_gateway: Live) -> None:
    address = live_gateway.url.removesuffix("/v1")
    key = {"authorization": f"Bearer {live_gateway.api_key}"}
    async with httpx.AsyncClient(base_url=address, headers=key, trust_env=False) as http:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/adapters", "/invocations"):
            answer = await http.post(path, json={"lora_name": "x", "lora_path": "/"})
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error"), path
        for path in ("/metrics", "/version", "/load", "/openapi.json", "/docs", "/v1/../metrics"):
            assert (await http.get(path)).status_code == 404, path


# Many at once --------------------------------------------------------------------------------------------


async def sure_of(client: openai.AsyncOpenAI, model: str, question: str) -> bool:
    """Whether every token leads by far: where two are all but equal, a batch of another size may tip it (bfloat16)."""
    asked = chat(model, question, logprobs=True, top_logprobs=2)
    found = (await client.chat.completions.create(**asked)).choices[0].logprobs
    tokens = (found.content or []) if found is not None else []
    return all(token.top_logprobs[0].logprob - token.top_logprobs[1].logprob > 0.5 for token in tokens)


@pytest.fixture
def every_slot_taken(live_gateway: Live, tmp_path: Path) -> Iterator[None]:
    """A fourth adapter: with all four slots taken, vLLM's own CPU operators give the base the last one's weights."""
    folder = copied("financial-qa", tmp_path / "fourth")
    made = live_gateway.loragate("adapters", "register", str(folder), "--name", "fourth", "--promote")
    assert made.returncode == 0, made.stderr
    yield
    assert live_gateway.loragate("adapters", "remove", "fourth").returncode == 0


@pytest.mark.usefixtures("every_slot_taken")
async def test_sixteen_mixed_streams_say_what_each_says_alone(client: openai.AsyncOpenAI) -> None:
    questions = [question for subject in ADAPTERS for question, _ in pairs(subject)]
    asked = []
    for model in MODELS:
        known = [question for question, _ in pairs(model)] if model in ADAPTERS else questions
        sure = [question for question in known[:24] if await sure_of(client, model, question)]
        asked += [(model, question) for question in sure[:4]]
    assert len(asked) == 16
    alone = [(await streamed(client, **chat(*one)))[0][0] for one in asked]
    assert len(set(alone)) > 12, "different models must not sound alike"
    for _ in range(3):
        together = await asyncio.gather(*(streamed(client, **chat(*one)) for one in asked))
        assert [texts[0] for texts, _ in together] == alone
