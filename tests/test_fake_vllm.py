"""The fake engine is held to the record of a real one, to the official clients, and to its own faults."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic
from anthropic import NotFoundError as AnthropicNotFound
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

from tests.fake_adapters import write_adapter
from tests.fake_vllm import FakeVLLM, Fault
from tests.recorded import API_KEY, BASE, MAX_MODEL_LEN, adapter_folder, dechunk, replay

SAY = "the quick brown fox"
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris"]}}},
}
CHAT: dict[str, Any] = {"model": "demo-base", "messages": [{"role": "user", "content": SAY}]}


@pytest.fixture
async def openai(engine: FakeVLLM) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic(engine: FakeVLLM) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=engine.url, api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(engine: FakeVLLM) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=30, trust_env=False) as client:
        yield client


async def raw(engine: FakeVLLM, body: dict[str, Any] | None = None, path: str = "/v1/chat/completions") -> bytes:
    """Everything the engine sends until it closes."""
    data = json.dumps(CHAT if body is None else body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(engine.url.rsplit(":", 1)[1]))
    head = f"POST {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Type: application/json\r\n"
    try:
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return await reader.read(-1)
    finally:
        writer.close()


# the record


async def test_every_answer_has_the_shape_that_the_real_engine_recorded(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "store", "/m")
    fake = FakeVLLM(BASE, 4, 16, folder, API_KEY, model_path="/m", max_model_len=MAX_MODEL_LEN)
    async with fake as engine:
        assert await replay(int(engine.url.rsplit(":", 1)[1]), folder) == []


# the official clients


async def test_openai_chat_says_who_answers(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(model="demo-base", messages=[{"role": "user", "content": SAY}], n=2)
    assert [choice.message.content for choice in answer.choices] == [f"demo-base: {SAY}"] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 10)


async def test_openai_chat_stream_ends_with_usage(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(
        model="demo-base",
        messages=[{"role": "user", "content": SAY}],
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "demo-base: the quick"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_openai_continuous_usage_counts_up(http: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = CHAT | {"stream": True, "stream_options": options}
    lines = (await http.post("/v1/chat/completions", json=body)).text.split("\n\n")
    counts = [json.loads(line[6:])["usage"]["completion_tokens"] for line in lines if line.startswith("data: {")]
    assert counts == [0, 1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_chat_calls_the_tool_once(openai: AsyncOpenAI, stream: bool) -> None:
    tool = {"type": "function", "function": TOOL}
    create: Any = openai.chat.completions.create
    if stream:
        chunks = [
            c
            async for c in await create(
                model="demo-base", messages=[{"role": "user", "content": SAY}], tools=[tool], stream=True
            )
        ]
        calls = [c.choices[0].delta.tool_calls[0].function for c in chunks if c.choices[0].delta.tool_calls]
        assert (calls[0].name, "".join(c.arguments or "" for c in calls)) == ("get_weather", '{"city": "Paris"}')
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        return
    first = await create(model="demo-base", messages=[{"role": "user", "content": SAY}], tools=[tool])
    [call] = first.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history = [{"role": "user", "content": SAY}, first.choices[0].message, result]
    second = await create(model="demo-base", messages=history, tools=[tool])
    assert second.choices[0].message.content == f"demo-base: {SAY}"


async def test_openai_logprobs_and_stop(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(
        model="demo-base",
        messages=[{"role": "user", "content": SAY}],
        logprobs=True,
        top_logprobs=2,
        stop=[" brown"],
    )
    choice = answer.choices[0]
    assert choice.message.content == "demo-base: the quick"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [(entry.token, len(entry.top_logprobs)) for entry in choice.logprobs.content] == [
        ("demo-base:", 2),
        (" the", 2),
        (" quick", 2),
    ]


async def test_openai_completions(openai: AsyncOpenAI) -> None:
    whole = await openai.completions.create(model="demo-base", prompt=["a", "b"], n=2, logprobs=1)
    assert [choice.text for choice in whole.choices] == ["demo-base: a"] * 2 + ["demo-base: b"] * 2
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 8)
    stream = await openai.completions.create(model="demo-base", prompt=SAY, max_tokens=2, stream=True)
    parts = [chunk.choices[0] async for chunk in stream]
    assert ("".join(p.text for p in parts), parts[-1].finish_reason) == ("demo-base: the", "length")


async def test_openai_embeddings_are_equal_in_both_encodings(openai: AsyncOpenAI) -> None:
    floats = await openai.embeddings.create(model="demo-base", input=["a", "b c"], encoding_format="float")
    coded = await openai.embeddings.create(model="demo-base", input="a", encoding_format="base64")
    packed = base64.b64decode(str(coded.data[0].embedding))
    assert list(struct.unpack("<8f", packed)) == floats.data[0].embedding
    assert floats.data[0].embedding != floats.data[1].embedding
    assert floats.usage.prompt_tokens == 3


async def test_openai_responses(openai: AsyncOpenAI) -> None:
    whole = await openai.responses.create(model="demo-base", input=SAY, max_output_tokens=2)
    assert (whole.output_text, whole.status) == ("demo-base: the", "incomplete")
    events = [e async for e in await openai.responses.create(model="demo-base", input=SAY, stream=True)]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == f"demo-base: {SAY}"
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage is not None
    assert events[-1].response.usage.output_tokens == 5
    respond: Any = openai.responses.create
    called = await respond(model="demo-base", input=SAY, tools=[{"type": "function", "strict": True, **TOOL}])
    assert called.output[0].arguments == '{"city": "Paris"}'


async def test_anthropic_messages(anthropic: AsyncAnthropic) -> None:
    whole = await anthropic.messages.create(
        model="demo-base", max_tokens=9, system="be kind", messages=[{"role": "user", "content": SAY}]
    )
    assert [block.text for block in whole.content if block.type == "text"] == [f"demo-base: {SAY}"]
    assert (whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens) == ("end_turn", 6, 5)
    async with anthropic.messages.stream(
        model="demo-base", max_tokens=2, messages=[{"role": "user", "content": SAY}]
    ) as stream:
        final = await stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 2)
    counted = await anthropic.messages.count_tokens(model="demo-base", messages=[{"role": "user", "content": SAY}])
    assert counted.input_tokens == 4


async def test_anthropic_tool(anthropic: AsyncAnthropic) -> None:
    tool = {"name": "get_weather", "input_schema": TOOL["parameters"]}
    begin: Any = anthropic.messages.stream
    async with begin(
        model="demo-base", max_tokens=50, messages=[{"role": "user", "content": SAY}], tools=[tool]
    ) as stream:
        final = await stream.get_final_message()
    [block] = final.content
    assert (final.stop_reason, block.type) == ("tool_use", "tool_use")
    assert block.type == "tool_use"
    assert block.input == {"city": "Paris"}


async def test_clients_read_the_refusals(openai: AsyncOpenAI, anthropic: AsyncAnthropic) -> None:
    with pytest.raises(NotFoundError, match="The model `x` does not exist"):
        await openai.chat.completions.create(model="x", messages=[{"role": "user", "content": SAY}])
    with pytest.raises(BadRequestError, match="maximum context length is 4096 tokens"):
        await openai.chat.completions.create(model="demo-base", messages=[{"role": "user", "content": "w " * 5000}])
    with pytest.raises(AnthropicNotFound, match="does not exist"):
        await anthropic.messages.create(model="x", max_tokens=1, messages=[{"role": "user", "content": SAY}])


# adapters


async def test_adapters_load_answer_and_are_lost_on_restart(
    http: httpx.AsyncClient, engine: FakeVLLM, tmp_path: Path
) -> None:
    path = str(write_adapter(tmp_path / "a"))
    body = {"lora_name": "a@1", "lora_path": path}
    assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 200
    assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 400
    answer = await http.post("/v1/chat/completions", json=CHAT | {"model": "a@1"})
    assert answer.json()["choices"][0]["message"]["content"] == f"a@1: {SAY}"
    shown = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card["root"]) for card in shown] == [("demo-base", "demo-base"), ("a@1", path)]
    assert 'running_lora_adapters="a@1"' in (await http.get("/metrics")).text
    await engine.restart()
    assert (engine.loaded, engine.loads) == ({}, ["a@1", "a@1"])
    assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "a@1"})).status_code == 404


async def test_resolver_follows_dots_as_vllm_does(tmp_path: Path) -> None:
    write_adapter(tmp_path / "outside")
    (tmp_path / "store").mkdir()
    async with FakeVLLM(adapter_dir=tmp_path / "store") as engine:
        answer = await raw(engine, CHAT | {"model": "../outside"})
        assert answer.startswith(b"HTTP/1.1 200")
        assert list(engine.loaded) == ["../outside"]


# what tests see


async def test_requests_are_kept_as_they_came(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    await http.post("/v1/completions?x=1", headers=[(b"X-Odd", "é".encode("latin-1"))], json={"prompt": "a"})
    [seen] = engine.requests
    assert (seen.path, seen.target, seen.header("x-odd")) == ("/v1/completions", "/v1/completions?x=1", "é")
    assert seen.json() == {"prompt": "a"}
    assert ("X-Odd", "é") in seen.headers


async def test_a_leaving_client_ends_the_work(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    for stream in (True, False):
        engine.script(Fault.STALL_BETWEEN if stream else Fault.STALL_BEFORE_HEAD)
        work = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": stream}))
        await engine.working(1)
        work.cancel()
        await asyncio.wait_for(engine.idle(), 30)
    assert engine.aborted == 2


async def test_stop_ends_stalls_and_start_serves_on_the_same_port(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    engine.hang()
    work = asyncio.create_task(http.get("/health"))
    await engine.seen(1)
    await engine.stop()
    with pytest.raises(httpx.TransportError):
        await work
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    await engine.start()
    assert (await http.get("/health")).status_code == 200


# faults, at byte level


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.CLOSE_BEFORE_HEAD, httpx.RemoteProtocolError),
        (Fault.CLOSE_AFTER_HEAD, httpx.RemoteProtocolError),
        (Fault.RESET, httpx.ReadError),
        (Fault.CUT_MID_STREAM, httpx.RemoteProtocolError),
        (Fault.NOT_HTTP, httpx.RemoteProtocolError),
        (Fault.HUGE_HEAD, httpx.RemoteProtocolError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_broken_transport(
    http: httpx.AsyncClient, engine: FakeVLLM, fault: Fault, expected: type[Exception], stream: bool
) -> None:
    engine.script(fault)
    with pytest.raises(expected):
        await http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    await engine.idle()


async def test_refuse_until_start(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    engine.script(Fault.REFUSE)
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    await engine.start()
    assert (await http.get("/health")).status_code == 200


async def test_quiet_end_and_half_event_are_well_formed(engine: FakeVLLM) -> None:
    whole = (await raw(engine, CHAT | {"stream": True})).partition(b"\r\n\r\n")[2]
    assert dechunk(whole).endswith(b"data: [DONE]\n\n")
    engine.script(Fault.QUIET_END, after=3)
    quiet = dechunk((await raw(engine, CHAT | {"stream": True})).partition(b"\r\n\r\n")[2])
    assert (quiet.count(b"\n\n"), quiet[-2:]) == (3, b"\n\n")
    engine.script(Fault.HALF_EVENT, after=3)
    half = dechunk((await raw(engine, CHAT | {"stream": True})).partition(b"\r\n\r\n")[2])
    assert half.count(b"\n\n") == 3
    assert not half.endswith(b"\n")
    engine.script(Fault.QUIET_END)
    with pytest.raises(ValueError, match=r"delimiter|Unterminated|Expecting"):
        json.loads(dechunk((await raw(engine)).partition(b"\r\n\r\n")[2]))


@pytest.mark.parametrize(
    ("path", "after", "last"),
    [
        ("/v1/chat/completions", 2, b'"code": 500}}\n\ndata: [DONE]\n\n'),
        ("/v1/completions", 0, b'"code": 500}}\n\ndata: [DONE]\n\n'),
        ("/v1/messages", 3, b'{"type":"error","error":{"type":"internal_error","message":"2 validation errors'),
        ("/v1/responses", 5, b'"type":"response.output_text.delta"}\n\n'),
    ],
)
async def test_engine_failure_in_a_stream_as_each_route_shows_it(
    engine: FakeVLLM, path: str, after: int, last: bytes
) -> None:
    engine.script(Fault.ERROR_EVENT, after=after)
    given = {"prompt": SAY, "input": SAY, "max_tokens": 9, "stream": True} | CHAT
    head, _, body = (await raw(engine, given, path)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    if path == "/v1/responses":
        assert not body.endswith(b"0\r\n\r\n")  # vLLM breaks off
        assert last in body
    else:
        assert last in dechunk(body)
    engine.script(Fault.ERROR_EVENT)
    assert b'"Internal server error"' in await raw(engine, given | {"stream": False}, path)


async def test_the_openai_client_raises_on_an_error_event(openai: AsyncOpenAI, engine: FakeVLLM) -> None:
    engine.script(Fault.ERROR_EVENT)
    stream = await openai.chat.completions.create(
        model="demo-base", messages=[{"role": "user", "content": SAY}], stream=True
    )
    with pytest.raises(APIError, match="Internal server error"):
        [chunk async for chunk in stream]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [Fault.GZIP, Fault.SLICED, Fault.EARLY_HINTS, Fault.SLOW, Fault.KEEP_ALIVE_COMMENTS, Fault.WRONG_CONTENT_TYPE],
)
async def test_odd_but_right(http: httpx.AsyncClient, engine: FakeVLLM, fault: Fault, stream: bool) -> None:
    body = CHAT | {"stream": stream}
    right = (await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "r"})).text
    engine.script(fault, delay=0.001)
    odd = (await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "r"})).text
    right, odd = (re.sub(r'"created(_at)?":[\d.]+', "", text.replace(": keep-alive\n\n", "")) for text in (right, odd))
    assert odd == right  # but for the second in which each was made


async def test_answers_that_are_something_else(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    engine.script(Fault.HTML_502)
    engine.script(Fault.NOT_JSON)
    engine.script(Fault.REDIRECT, location="http://127.0.0.1:1/canary")
    engine.script(Fault.STATUS, status=429, headers=[("retry-after", "7")])
    engine.script(Fault.STATUS, status=503, body=b'{"error":1}')
    answers = [await http.post("/v1/chat/completions", json=CHAT) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [502, 200, 302, 429, 503, 200]
    assert answers[0].text.startswith("<html>")
    assert answers[1].text == "this is not JSON"
    assert answers[2].headers["location"] == "http://127.0.0.1:1/canary"
    assert answers[3].headers["retry-after"] == "7"
    assert answers[3].json()["error"]["code"] == 429
    assert answers[4].content == b'{"error":1}'


@pytest.mark.parametrize(
    ("fault", "stream"), [(Fault.HUGE_LINE, True), (Fault.HUGE_BODY, True), (Fault.HUGE_BODY, False)]
)
async def test_huge_answers_stop_when_the_reader_leaves(
    http: httpx.AsyncClient, engine: FakeVLLM, fault: Fault, stream: bool
) -> None:
    engine.script(fault, size=4 << 20)
    assert len((await http.post("/v1/chat/completions", json=CHAT | {"stream": stream})).content) >= 4 << 20
    engine.script(fault, size=1 << 40)
    async with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": stream}) as answer:
        await anext(answer.aiter_raw())
    await asyncio.wait_for(engine.idle(), 30)


async def test_scripts_pick_their_requests(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    engine.script(Fault.STATUS, status=503, times=None, model="demo-base")
    engine.script(Fault.STATUS, status=500, path="/health", times=2)
    codes = [(await http.get("/health")).status_code for _ in range(3)]
    assert codes == [500, 500, 200]
    assert [(await http.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(3)] == [503] * 3
    assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "x"})).status_code == 404
    engine.heal()
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_closed_idle_connections(http: httpx.AsyncClient, engine: FakeVLLM) -> None:
    await http.get("/health")
    assert engine.connections == 1
    await engine.close_idle()
    await http.get("/health")
    assert engine.accepted == 2


# as a process


async def run(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fake_vllm",
        *flags,
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_process_takes_vllm_flags_and_ends_with_zero_on_sigterm() -> None:
    process = await run("--model", "/m", "--served-model-name", "b", "c", "--enable-lora", "--dtype", "bfloat16")
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with httpx.AsyncClient(trust_env=False) as http:
        cards = (await http.get(f"{url}/v1/models")).json()["data"]
    assert [(card["id"], card["root"]) for card in cards] == [("b", "/m"), ("c", "/m")]
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--refuse", "no such thing"), b"Value error, no such thing"), (("--crash-after", "0.01"), b"EngineDeadError")],
)
async def test_process_fails_as_vllm_fails(flags: tuple[str, ...], said: bytes) -> None:
    process = await run(*flags)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert said in err
