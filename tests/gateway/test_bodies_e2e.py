"""Request bodies, end to end: what is not strict JSON or not on the list never reaches the engine in any form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    error_of,
    quiet,
)

JSON = {"content-type": "application/json"}


def around(value: bytes, field: bytes = b"seed") -> bytes:
    """A chat request that is right but for one field."""
    return b'{"model":"demo-base","messages":[{"role":"user","content":"hi"}],"%b":%b}' % (field, value)


NOT_JSON = {
    "nothing": b"",
    "no end": b"{",
    "a list": b"[]",
    "a string": b'"model"',
    "a number": b"1",
    "null": b"null",
    "two documents": around(b"1") * 2,
    "nesting of lists": around(b"[" * 100_000 + b"]" * 100_000),
    "nesting of objects": around(b'{"a":' * 65 + b"1" + b"}" * 65),
    "an integer of 5,000 digits": around(b"9" * 5000),
    "2^64": around(b"18446744073709551616"),
    "below -2^63": around(b"-9223372036854775809"),
    "NaN": around(b"NaN"),
    "Infinity": around(b"-Infinity"),
    "1e999": around(b"1e999"),
    "a lone surrogate": around(b'"\\ud800"', b"stop"),
    "bad UTF-8": around(b'"\xff"', b"stop"),
    "overlong UTF-8": around(b'"\xc0\xaf"', b"stop"),
    "a BOM": b"\xef\xbb\xbf" + around(b"1"),
    "UTF-16": around(b"1").decode().encode("utf-16"),
    "a control character": around(b'"\x00"', b"stop"),
    "single quotes": around(b"'a'", b"stop"),
    "a comment": around(b"1 /* hi */"),
}


async def test_what_is_not_strict_json_is_refused_on_every_route(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway, await gateway.http(await counted(gateway)) as http:
        for name, body in NOT_JSON.items():
            for path in ROUTES:
                answer = await http.post(path, content=body, headers=JSON)
                assert answer.status_code == 400, (name, path, answer.text)
                error = error_of(path, answer.json())
                assert path.startswith(MESSAGES) or error["code"] == "invalid_json", (name, path, answer.text)
        assert engine.inferences == []
        await at_rest(gateway)


async def test_the_largest_body_is_parsed_and_one_that_is_deep_in_text_only_is_right(
    engine: FakeVLLM, tmp_path: Path
) -> None:
    async with quiet(tmp_path, [engine]) as gateway, await gateway.http(await counted(gateway)) as http:
        for said in ("[{" * 1000, "9" * 30, "a" * (8 * 1024 * 1024 - 200), "\\u0000 \u2028 \U0001f600"):
            answer = await http.post(CHAT, json=ask(CHAT, said))
            assert answer.status_code in (200, 400), answer.text
            assert answer.status_code == 200 or answer.json()["error"]["code"] == "context_length_exceeded"
            assert engine.inferences[-1].json()["messages"][0]["content"] == said
        await at_rest(gateway)


async def test_of_a_key_given_twice_the_engine_sees_what_was_authorised(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway:
        key = await counted(gateway, models=frozenset({MODEL}))
        async with await gateway.http(key) as http:
            for first, last, status in (("secret-model", MODEL, 200), (MODEL, "secret-model", 404)):
                body = f'{{"model":"{first}","messages":[{{"role":"user","content":"hi"}}],"model":"{last}"}}'
                answer = await http.post(CHAT, content=body, headers=JSON)
                assert answer.status_code == status, answer.text
            (seen,) = engine.inferences
            assert seen.body.count(b'"model"') == 1
            assert b"secret-model" not in seen.body
            twice = around(b'"safe","stop":"also"', b"stop")
            assert (await http.post(CHAT, content=twice, headers=JSON)).status_code == 200
            assert engine.inferences[-1].json()["stop"] == "also"
            assert engine.inferences[-1].body.count(b'"stop"') == 1
        await at_rest(gateway)


DANGEROUS: dict[str, Any] = {
    "chat_template": "{{ cycler.__init__.__globals__ }}",
    "chat_template_kwargs": {"x": 1},
    "mm_processor_kwargs": {"x": 1},
    "media_io_kwargs": {"x": 1},
    "cache_salt": "x",
    "request_id": "x",
    "prompt_embeds": "AAAA",
    "lora_request": {"path": "/etc"},
    "priority": -1,
    "kv_transfer_params": {"do_remote_prefill": True},
    "ec_transfer_params": {},
    "vllm_xargs": {"x": 1},
    "guided_json": {},
    "guided_regex": "(a+)+$",
    "guided_decoding_backend": "x",
    "logits_processors": ["os.system"],
    "api_base": "http://127.0.0.1:9",
    "api_key": "x",
    "base_url": "http://127.0.0.1:9",
    "extra_headers": {"x": "y"},
    "documents": [{"text": "x"}],
    "bootstrap_host": "127.0.0.1",
    "data_parallel_rank": 1,
    "previous_messages": [],
    "functions": [],
    "__proto__": {},
    "": 1,
    "a" * 5000: 1,
}


HIDDEN = "(a field name that cannot be shown)"


async def test_dangerous_fields_never_reach_the_engine(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway, await gateway.http(await counted(gateway)) as http:
        for path in ROUTES:
            for name, value in DANGEROUS.items():
                answer = await http.post(path, json=ask(path, **{name: value}))
                assert answer.status_code == 400, (path, name, answer.text)
                error = error_of(path, answer.json())
                if not path.startswith(MESSAGES):
                    assert error["code"] == "unsupported_parameter", (path, name, error)
                    assert error["param"] in (name, f"{name}.x", HIDDEN), (path, name, error)
                    assert (error["param"] == HIDDEN) == (name in ("", "a" * 5000))
                assert len(answer.content) < 1000
        assert engine.inferences == []
        await at_rest(gateway)


OUT_OF_BOUNDS: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        *({"n": value} for value in (0, -1, 17, 2**63, True, 1.5, "2")),
        *({"max_tokens": value} for value in (0, -1, 10**9, 1e3, True)),
        {"top_logprobs": 21, "logprobs": True},
        {"temperature": 2.1},
        {"stop": ["a"] * 17},
        {"logit_bias": {str(n): 1 for n in range(2000)}},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 257},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}]},
        {"stream_options": {"include_usage": True}},
    ],
    COMPLETIONS: [{"prompt": []}, {"prompt": ["x"] * 257}, {"n": 16, "prompt": ["x"] * 17}, {"logprobs": -1}],
    EMBEDDINGS: [{"input": []}, {"input": ["x"] * 2049}, {"dimensions": 0}, {"encoding_format": "hex"}],
    RESPONSES: [
        *({"previous_response_id": "resp_1"}, {"background": True}, {"tools": [{"type": "web_search"}]}),
        {"input": []},
    ],
    MESSAGES: [{"max_tokens": 0}, {"max_tokens": -5}, {"messages": []}, {"stop_sequences": ["x"] * 100}],
    COUNT: [{"messages": []}, {"max_tokens": "x"}],
}


async def test_values_out_of_bounds_never_reach_the_engine(engine: FakeVLLM, tmp_path: Path) -> None:
    async with quiet(tmp_path, [engine]) as gateway, await gateway.http(await counted(gateway)) as http:
        for path, bad in OUT_OF_BOUNDS.items():
            for fields in bad:
                answer = await http.post(path, json=ask(path, **fields))
                assert answer.status_code == 400, (path, fields, answer.text)
                error_of(path, answer.json())
        assert engine.inferences == []
        await at_rest(gateway)


async def test_what_reaches_the_engine_is_our_own_serialisation(engine: FakeVLLM, tmp_path: Path) -> None:
    """Annotations and nulls are gone, the engine's name is in, usage is asked for where a stream has it."""
    async with quiet(tmp_path, [engine]) as gateway, await gateway.http(await counted(gateway)) as http:
        for path in STREAMS:
            for stream in (False, True):
                note: dict[str, Any] = (
                    {"user": "canary"} if path == COMPLETIONS else {"metadata": {"user_id": "canary"}}
                )
                body = json.dumps(ask(path, stream=stream, temperature=None, **note), indent=3)
                answer = await http.post(path, content=body, headers=JSON)
                assert answer.status_code == 200, (path, answer.text)
                seen = engine.inferences[-1]
                assert b"\n" not in seen.body
                assert b"canary" not in seen.body
                sent = seen.json()
                assert "temperature" not in sent
                assert sent["model"] == MODEL
                wanted = {"include_usage": True, "continuous_usage_stats": True}
                chunks = path in (CHAT, COMPLETIONS) and stream
                assert sent.get("stream_options") == (wanted if chunks else None)
        await at_rest(gateway)
