"""Proof after load: engines that tell the truth, engines that lie, engines that answer anything at all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.engine import EngineClient, EngineUnreachable
from adapters.errors import EngineError
from adapters.http import open_http
from adapters.proof import MAX_PROMPTS, PROMPTS, TOKENS, TOLERANCE, Reference, Utterance, Verdict, prove
from tests.fake_adapters import write_adapter
from tests.fake_vllm import FakeVLLM, Fault

NAME, OTHER, BASE = "customer-service@0123456789ab", "code-generation@ba9876543210", "demo-base"
SECRET = "the customer's own words"
COMPLETIONS = "/v1/completions"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with open_http() as client:
        yield client


@pytest.fixture
async def engines(http: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[tuple[FakeVLLM, FakeVLLM]]:
    """Two engines with both adapters loaded."""
    for number, name in enumerate((NAME, OTHER)):
        write_adapter(tmp_path / name, seed=number)
    async with FakeVLLM() as first, FakeVLLM() as second:
        for engine in (first, second):
            for name in (NAME, OTHER):
                await EngineClient(engine.url, None, tmp_path, http).load(name)
        yield first, second


@pytest.fixture
def engine(engines: tuple[FakeVLLM, FakeVLLM]) -> FakeVLLM:
    return engines[0]


@pytest.fixture
def clients(engines: tuple[FakeVLLM, FakeVLLM], http: httpx.AsyncClient, tmp_path: Path) -> list[EngineClient]:
    return [EngineClient(engine.url, None, tmp_path, http) for engine in engines]


@pytest.fixture
def client(clients: list[EngineClient]) -> EngineClient:
    return clients[0]


async def said(client: EngineClient, name: str, *prompts: str) -> Reference:
    """What an honest engine says, also after prompts of the test's own."""
    asked = tuple(Utterance(prompt, (), (), ()) for prompt in prompts)
    return (await prove(client, name, BASE, trained=asked)).said


# engines that tell the truth


async def test_the_second_engine_is_held_to_what_the_first_said(
    clients: list[EngineClient], engines: tuple[FakeVLLM, FakeVLLM]
) -> None:
    first = await prove(clients[0], NAME, BASE)
    assert (first.verdict, first.reason) == (Verdict.PASSED, "")
    assert [one.prompt for one in first.said] == list(PROMPTS)
    assert all(one.tokens and len(one.tokens) == len(one.logprobs) == len(one.runners_up) for one in first.said)
    second = await prove(clients[1], NAME, BASE, reference=first.said)
    assert (second.verdict, second.said) == (Verdict.PASSED, first.said)
    assert [len(engine.inferences) for engine in engines] == [6, 3]  # the base is asked only where it can tell more


async def test_how_the_engine_is_asked(client: EngineClient, engine: FakeVLLM) -> None:
    await prove(client, NAME, BASE)
    bodies: list[dict[str, Any]] = [seen.json() for seen in engine.inferences]
    assert {seen.path for seen in engine.inferences} == {COMPLETIONS}
    assert sorted((body["model"], body["prompt"]) for body in bodies) == sorted(
        (model, prompt) for model in (NAME, BASE) for prompt in PROMPTS
    )
    for body in bodies:
        assert (body["max_tokens"], body["temperature"], body["seed"], body["logprobs"]) == (TOKENS, 0, 0, 2)
        assert body["repetition_penalty"] == 1  # generation_config.json must have no say in it
    salts = {body["cache_salt"] for body in bodies}
    await prove(client, NAME, BASE)
    assert len(salts) == 1
    assert (
        engine.inferences[-1].json()["cache_salt"] not in salts
    )  # a repeated proof must not read the first one's cache


async def test_small_differences_pass_and_large_ones_do_not(client: EngineClient) -> None:
    before = await said(client, NAME)

    def moved(by: float) -> Reference:
        return tuple(replace(one, logprobs=tuple(number - by for number in one.logprobs)) for one in before)

    near, far = moved(TOLERANCE * 0.9), moved(TOLERANCE * 1.1)
    assert (await prove(client, NAME, BASE, reference=near)).verdict is Verdict.PASSED
    assert (await prove(client, NAME, BASE, reference=far)).verdict is Verdict.FAILED
    assert (await prove(client, NAME, BASE, reference=far, tolerance=1)).verdict is Verdict.PASSED


# engines that lie


async def test_weights_that_change_nothing_warn_and_are_nobodys_measure(client: EngineClient, engine: FakeVLLM) -> None:
    engine.lies[NAME] = BASE
    found = await prove(client, NAME, BASE)
    assert (found.verdict, found.said) == (Verdict.NO_EFFECT, ())
    assert "changes nothing" in found.reason


async def test_an_engine_that_lost_the_weights_fails_where_another_has_them(
    clients: list[EngineClient], engines: tuple[FakeVLLM, FakeVLLM]
) -> None:
    reference = await said(clients[0], NAME)
    engines[1].lies[None] = BASE
    found = await prove(clients[1], NAME, BASE, reference=reference)
    assert (found.verdict, found.said) == (Verdict.FAILED, ())
    assert "like the base model" in found.reason
    assert "not applied" in found.reason


async def test_an_engine_that_answers_with_another_adapter_fails(
    clients: list[EngineClient], engines: tuple[FakeVLLM, FakeVLLM]
) -> None:
    reference = await said(clients[0], NAME)
    engines[1].lies[NAME] = OTHER
    found = await prove(clients[1], NAME, BASE, reference=reference)
    assert found.verdict is Verdict.FAILED
    assert "unlike the other engines, on 3 of 3 prompts" in found.reason
    assert "base" not in found.reason


async def test_the_trainers_evaluation_counts_from_the_first_engine_on(client: EngineClient, engine: FakeVLLM) -> None:
    trained = await said(client, NAME, SECRET, "又一个问题")
    assert [one.prompt for one in trained] == [SECRET, "又一个问题"]
    assert (await prove(client, NAME, BASE, trained=trained)).verdict is Verdict.PASSED
    engine.lies[NAME] = OTHER
    found = await prove(client, NAME, BASE, trained=trained)
    assert (found.verdict, found.said) == (Verdict.FAILED, ())
    assert "unlike the trainer's evaluation, on 2 of 2 prompts" in found.reason
    engine.lies[NAME] = BASE
    found = await prove(client, NAME, BASE, trained=trained)
    assert found.verdict is Verdict.FAILED
    assert "like the base model, unlike the trainer's evaluation" in found.reason


async def test_a_trainer_that_wrote_fewer_tokens_is_believed_as_far_as_it_goes(client: EngineClient) -> None:
    trained = await said(client, NAME, "one two three")
    short = tuple(Utterance(one.prompt, one.tokens[:2], one.logprobs[:2], one.runners_up[:2]) for one in trained)
    assert (await prove(client, NAME, BASE, trained=short)).verdict is Verdict.PASSED
    assert (await prove(client, NAME, BASE, reference=short)).verdict is Verdict.FAILED


async def test_a_reference_to_other_prompts_says_nothing(client: EngineClient) -> None:
    old = await said(client, OTHER, "asked long ago")
    trained = await said(client, NAME, "asked since")
    assert (await prove(client, NAME, BASE, reference=old, trained=trained)).verdict is Verdict.PASSED
    assert (await prove(client, NAME, BASE, reference=old)).verdict is Verdict.FAILED


async def test_many_prompts_are_cut_and_long_ones_left_out(client: EngineClient, engine: FakeVLLM) -> None:
    many = await said(client, NAME, *(f"question {number}" for number in range(40)))
    assert len(many) == MAX_PROMPTS
    long = "word " * 5000  # the fake's words are its tokens, and it takes 4,096
    assert [one.prompt for one in await said(client, NAME, long, "short")] == ["short"]
    found = await prove(client, NAME, BASE, trained=(Utterance(long, (), (), ()),))
    assert found.verdict is Verdict.NOT_APPLICABLE
    assert "longer" in found.reason


# engines that answer anything at all


def answer(**changed: Any) -> bytes:
    """A completion of one token, with `changed` in its logprobs."""
    logprobs = {"tokens": ["token_id:1"], "token_logprobs": [-1.0], "top_logprobs": [{"token_id:1": -1.0}]} | changed
    choice = {"index": 0, "text": SECRET, "logprobs": logprobs}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode()


GARBAGE = {
    "nan": answer(token_logprobs=[math.nan]),
    "infinity": answer(top_logprobs=[{"token_id:2": -math.inf}]),
    "enormous": answer(token_logprobs=[10**400]),
    "true": answer(token_logprobs=[True]),
    "text": answer(token_logprobs=["-1.0"]),
    "lengths": answer(tokens=["token_id:1", "token_id:2"]),
    "endless": answer(tokens=["a"] * 17, token_logprobs=[-1.0] * 17, top_logprobs=[{}] * 17),
    "surrogate": answer(tokens=["\ud800"]),
    "no list": answer(top_logprobs={"token_id:1": -1.0}),
    "no choices": b'{"choices": []}',
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "no json": SECRET.encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_one_clean_sentence(client: EngineClient, engine: FakeVLLM, body: bytes) -> None:
    engine.script(Fault.STATUS, times=None, status=200, body=body)
    with pytest.raises(EngineError, match="no completion, or no finite number") as caught:
        await prove(client, NAME, BASE)
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, b'{"error":{"message":"no such thing: %s"}}', "answers 400"),
        (500, b'{"error":{"message":"/srv/models: %s"}}', "answers 500"),
        (404, b'{"error":{"message":"The model `x` does not exist. %s"}}', "does not know"),
        (401, b'{"error":"Unauthorized %s"}', "api_key"),
        (302, b"%s", "answers 302"),
    ],
)
async def test_refusals_are_one_clean_sentence(
    client: EngineClient,
    engine: FakeVLLM,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
    says: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    engine.script(Fault.STATUS, times=None, status=status, body=body % SECRET.encode())
    with pytest.raises(EngineError, match=says) as caught:
        await prove(client, NAME, BASE, trained=(Utterance(SECRET, (), (), ()),))
    assert type(caught.value) is EngineError
    assert "/srv" not in caught.value.message
    assert SECRET not in caught.value.message + caplog.text


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT_MID_STREAM, Fault.NOT_HTTP])
async def test_an_engine_that_drops_the_proof_is_unreachable(
    client: EngineClient, engine: FakeVLLM, fault: Fault
) -> None:
    engine.script(fault, times=None, after=0)
    with pytest.raises(EngineUnreachable):
        await prove(client, NAME, BASE)


async def test_one_answer_that_fails_ends_the_others(client: EngineClient, engine: FakeVLLM) -> None:
    engine.script(Fault.STATUS, times=1, status=500, body=b"{}")
    engine.script(Fault.STALL_BEFORE_HEAD, times=None)
    with pytest.raises(EngineError, match="answers 500"):
        await prove(client, NAME, BASE)
    await engine.idle()


async def test_a_silent_and_a_talkative_engine(client: EngineClient, engine: FakeVLLM) -> None:
    engine.script(Fault.STALL_BEFORE_HEAD, times=None)
    with pytest.raises(EngineError, match=r"does not answer in 0\.2 s"):
        await prove(client, NAME, BASE, timeout_s=0.2)
    engine.heal()
    engine.script(Fault.HUGE_BODY, times=None, size=4 * 1024 * 1024)
    with pytest.raises(EngineError, match="more than 1048576 bytes"):
        await prove(client, NAME, BASE)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b'{"detail":"Not Found"}', "does not generate"),  # vLLM with a pooling model
        (405, b'{"detail":"Method Not Allowed"}', "does not generate"),
        (501, b'{"error":{"message":"The model does not support Completions API"}}', "does not generate"),
        (400, b'{"error":{"message":"Requested sample logprobs of 2, which is more than 0"}}', "--max-logprobs"),
        (200, answer().replace(b'"logprobs": {', b'"no": {'), "--max-logprobs"),
    ],
)
async def test_engines_that_cannot_be_compared(
    client: EngineClient, engine: FakeVLLM, status: int, body: bytes, says: str
) -> None:
    engine.script(Fault.STATUS, times=None, status=status, body=body)
    found = await prove(client, NAME, BASE)
    assert (found.verdict, found.said) == (Verdict.NOT_APPLICABLE, ())
    assert says in found.reason


@pytest.mark.parametrize(("moved", "verdict"), [(0.0005, Verdict.NO_EFFECT), (0.01, Verdict.PASSED)])
async def test_a_small_effect_is_an_effect(
    client: EngineClient, engine: FakeVLLM, moved: float, verdict: Verdict
) -> None:
    for model, logprob in ((BASE, -1.0), (NAME, -1.0 - moved)):
        body = answer(token_logprobs=[logprob])
        engine.script(Fault.STATUS, times=None, status=200, body=body, model=model)
    assert (await prove(client, NAME, BASE)).verdict is verdict


async def test_an_adapter_that_says_nothing_at_all(client: EngineClient, engine: FakeVLLM) -> None:
    nothing = b'{"choices": [{"index": 0, "text": "", "logprobs": null}], "usage": {"completion_tokens": 0}}'
    engine.script(Fault.STATUS, times=None, status=200, body=nothing, model=NAME)
    silent = await prove(client, NAME, BASE)
    assert (silent.verdict, [one.tokens for one in silent.said]) == (Verdict.PASSED, [(), (), ()])
    assert (await prove(client, NAME, BASE, reference=silent.said)).verdict is Verdict.PASSED
    assert (await prove(client, OTHER, BASE, reference=silent.said)).verdict is Verdict.FAILED


def test_nothing_said_is_in_a_repr() -> None:
    assert SECRET not in repr(Utterance(SECRET, (SECRET,), (-1.0,), ((SECRET, -2.0),)))
