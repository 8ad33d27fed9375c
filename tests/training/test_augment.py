"""`loragate datasets augment` against a real endpoint that answers well, badly, late, and not at all."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.responses import Response

from adapters.errors import Conflict, StorageFull
from gateway.cli import main
from tests.fake_vllm import FakeVLLM
from tests.gateway.running import running
from tests.training.data.corpus import chat, lines, write
from tests.training.data.test_mixing import PAIR, lines_of
from tests.training.fake_openai import KEY, MODEL, FakeOpenAI
from training.augment.journal import Job, Journal
from training.augment.making import Made, Manner
from training.data.check import check
from training.data.reading import open_data
from training.data.row import Row, Turn, key
from training.data.split import is_held_out

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = (
    "How do I send back a jacket that is too small for me?",
    "Where can I see when my parcel will arrive at home?",
    "Which cards do you take when I pay at the till?",
    "My voucher A17 was refused; what went wrong with it?",
    "Do your boots keep water out on a long winter walk?",
    "Can somebody call me about the broken zip on my bag?",
    "Is the blue scarf made of wool or of something else?",
    "Why was I charged 25 euros twice on the same day?",
)
BUSY = {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
NOW = {"retry-after": "0"}
NOWHERE = "http://127.0.0.1:9/v1"


def rows(count: int = len(QUESTIONS)) -> list[dict[str, Any]]:
    return [chat(("user", question), ("assistant", f"Answer {n}.")) for n, question in enumerate(QUESTIONS[:count])]


def asked_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def turned(body: dict[str, Any]) -> str:
    """Other words, or at least in another order; another one for each seed. A translation is in capitals first."""
    if " into " in body["messages"][0]["content"] and not asked_of(body).isupper():
        return asked_of(body).upper()
    words = asked_of(body).split()
    ordered = reversed(words) if body.get("seed", 0) % 2 else sorted(words, key=lambda word: word[::-1])
    return " ".join(ordered)


@pytest.fixture
async def service() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as fake:
        fake.says = turned
        yield fake


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write(tmp_path, "shop.jsonl", lines(*rows()))


def words_for(url: str, file: Path, to: Path, *words: str) -> list[str]:
    (file.parent / "key").write_text(KEY + "\n")
    how = () if "--how" in words else ("--how", "paraphrase")
    at = ("--endpoint", url, "--key-file", str(file.parent / "key"), "--model", MODEL)
    return ["datasets", "augment", str(file), "--to", str(to), *how, *at, *words]


async def augment(service: FakeOpenAI, file: Path, *words: str, to: str = "made.jsonl") -> Result:
    """In a thread: the service answers in this one."""
    argv = words_for(service.url, file, file.parent / to, *words)
    environ = {"LORAGATE_HOME": str(file.parent), "LORAGATE_API_KEY": "", "LORAGATE_ADMIN_KEY": ""}
    return await asyncio.to_thread(CliRunner(env=environ).invoke, main, argv)


async def augmented(service: FakeOpenAI, file: Path, *words: str, to: str = "made.jsonl") -> dict[str, Any]:
    result = await augment(service, file, "--json", *words, to=to)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def add(file: Path, *more: object) -> None:
    file.write_bytes(file.read_bytes() + lines(*more))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def made_in(folder: Path, name: str = "made.jsonl") -> list[Any]:
    return lines_of(folder / name)


# how


async def test_a_paraphrase_has_its_parent_and_its_parents_answer(service: FakeOpenAI, shop: Path) -> None:
    found = await augmented(service, shop, "--count", "2")
    assert (found["made"], found["refused"], found["requests"], found["left"]) == (16, {}, 16, 0)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (192, 80)
    parents = [row for row in open_data(shop).rows() if isinstance(row, Row)]
    made = made_in(shop.parent)
    assert [(row["made"]["row"], row["made"]["variant"]) for row in made] == [
        (n, v) for n in range(1, 9) for v in (1, 2)
    ]
    for row, child in zip(made, open_data(shop.parent / "made.jsonl").rows(), strict=True):
        assert isinstance(child, Row)
        parent = parents[row["made"]["row"] - 1]
        assert row["parent"] == key(parent) == key(child)
        assert child.answer == parent.answer
        assert child.question != parent.question
        assert all(is_held_out(child, 0.5, seed) == is_held_out(parent, 0.5, seed) for seed in range(5))
        assert (row["made"]["how"], row["made"]["by"]) == ("paraphrase", MODEL)
    assert check(open_data(shop.parent / "made.jsonl"), near_rows=0).counts == {}
    styles = {body["messages"][0]["content"] for body in service.asked}
    assert len(styles) == 2, "the second one is asked for in another manner"
    assert set(service.keys) == {f"Bearer {KEY}"}


async def test_back_translation_goes_by_another_language(service: FakeOpenAI, shop: Path) -> None:
    found = await augmented(service, shop, "--how", "back-translation", "--via", "fr", "--rows", "3")
    assert (found["made"], found["requests"], found["via"]) == (3, 6, "fr")
    into = Counter(body["messages"][0]["content"].partition("into ")[2].split(".")[0] for body in service.asked)
    assert into == {"French": 3, "English": 3}
    assert {row["made"]["via"] for row in made_in(shop.parent)} == {"fr"}
    assert {row["messages"][-1]["content"] for row in made_in(shop.parent)} <= {f"Answer {n}." for n in range(8)}


async def test_more_like_this_makes_question_and_answer(service: FakeOpenAI, shop: Path) -> None:
    def another(body: dict[str, Any]) -> str:
        shown = json.loads(asked_of(body).partition("\n\n")[0])
        question = " ".join(reversed(shown["question"].split()))
        fenced = json.dumps({"question": question, "answer": f"About {question} there is much to say."})
        return f"<think>What of {{braces}}?</think>\nHere it is:\n```json\n{fenced}\n```"

    service.says = another
    turns = (("user", "Which size of boots would I need for thick socks?"), ("assistant", "One more."))
    several = chat(("user", "Hi"), ("assistant", "Hi."), ("user", "So?"), ("assistant", "Yes."))
    add(shop, chat(("system", "You sell shoes."), *turns), several)
    found = await augmented(service, shop, "--how", "more-like-this")
    assert (found["made"], found["unfit"]) == (9, {"is a conversation of several turns": 1})
    made = made_in(shop.parent)
    assert made[-1]["messages"][0] == {"role": "system", "content": "You sell shoes."}
    assert made[0]["messages"][1]["content"].startswith("About me? for small")


async def test_pairs_and_labels_can_be_asked_otherwise_and_not_made_up(service: FakeOpenAI, tmp_path: Path) -> None:
    pairs = write(tmp_path, "p.jsonl", lines(*({**PAIR, "prompt": question} for question in QUESTIONS[:3])))
    assert (await augmented(service, pairs))["made"] == 3
    assert {row["non_preferred_output"][0]["content"] for row in made_in(tmp_path)} == {"Fire."}
    result = await augment(service, pairs, "--how", "more-like-this", to="other.jsonl")
    assert (result.exit_code, "Use --how paraphrase" in result.stderr) == (1, True)
    assert not (tmp_path / "other.jsonl").exists()


async def test_what_was_made_can_be_mixed_and_made_rows_are_no_parents(service: FakeOpenAI, shop: Path) -> None:
    await augmented(service, shop)
    to = shop.parent / "all.jsonl"
    words = ["datasets", "mix", str(shop), str(shop.parent / "made.jsonl"), "--to", str(to)]
    assert CliRunner().invoke(main, words).exit_code == 0
    found = await augmented(service, to, "--dry-run", to="again.jsonl")
    assert (found["fit"], found["unfit"], found["requests"]) == (8, {"was made from another row itself": 8}, 8)


# which


async def test_the_seed_says_which_rows_and_a_dry_run_asks_nothing(service: FakeOpenAI, shop: Path) -> None:
    found = await augmented(service, shop, "--share", "0.5", "--dry-run")
    assert (found["parents"], found["jobs"], service.asked) == (4, 4, [])
    taken: list[list[int]] = []
    for seed in ("1", "1", "2"):
        await augmented(service, shop, "--share", "0.5", "--seed", seed, to=f"{len(taken)}.jsonl")
        taken.append([row["made"]["row"] for row in made_in(shop.parent, f"{len(taken)}.jsonl")])
    assert taken[0] == taken[1] != taken[2]


# what is refused

REFUSED: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("same", asked_of),
    ("same", lambda body: f'"{asked_of(body).upper()}!"'),
    ("empty", lambda body: "  "),
    ("empty", lambda body: "<think>Hm.</think>"),
    ("cut_off", lambda body: "<think>I have to find other words for"),
    ("refusal", lambda body: "I'm sorry, but I can't help with that request."),
    ("garbled", lambda body: turned(body) + " cafÃ©"),
    ("other_facts", lambda body: turned(body) + " 99"),
    ("other_length", lambda body: turned(body) + " and more words" * 30),
    ("other_language", lambda body: "请问我要怎么样才能把太小的外套退回去呢"),
    ("like_another", lambda body: QUESTIONS[6] if "wool" not in asked_of(body) else QUESTIONS[4]),
]


async def test_what_is_no_good_is_refused_and_kept_with_the_reason(service: FakeOpenAI, shop: Path) -> None:
    for place, (kind, says) in enumerate(REFUSED):
        service.says = says
        result = await augment(service, shop, "--json", "--rows", "1", to=f"{place}.jsonl")
        assert (result.exit_code, json.loads(result.stdout)["refused"]) == (1, {kind: 1}), place
        assert "Nothing that was made is any good" in result.stderr
        (kept,) = made_in(shop.parent, f"{place}.refused.jsonl")
        assert (kept["kind"], kept["made"]["variant"]) == (kind, 1)
        assert kept["message"]
        assert f"{place}.jsonl" not in names_in(shop.parent)


async def test_an_answer_that_was_cut_off_is_no_row(service: FakeOpenAI, shop: Path) -> None:
    service.finish = "length"
    result = await augment(service, shop, "--json")
    assert json.loads(result.stdout)["refused"] == {"cut_off": 8}
    asked = len(service.asked)
    service.finish = "stop"
    assert json.loads((await augment(service, shop, "--json")).stdout)["done_before"] == 8
    assert len(service.asked) == asked, "what was refused was paid for as well"


async def test_the_same_words_in_another_conversation_ask_something_else(service: FakeOpenAI, tmp_path: Path) -> None:
    service.says = lambda body: "Sure, go on!"
    before = [(("user", f"Shall I send {n}?"), ("assistant", f"I can send {n}.")) for n in range(3)]
    talks = [chat(*each, ("user", "Yes, please do."), ("assistant", f"Sent {n}.")) for n, each in enumerate(before)]
    unlearned = chat(("user", "Why?"), ("assistant", "So."), ("user", "And then?"), ("assistant", "No idea."))
    unlearned["messages"][-1]["weight"] = 0
    found = await augmented(service, write(tmp_path, "talks.jsonl", lines(*talks, unlearned)))
    assert (found["made"], found["unfit"]) == (3, {"ends with an answer that is not learned": 1})
    assert [row["messages"][2]["content"] for row in made_in(tmp_path)] == ["Sure, go on!"] * 3


async def test_two_that_are_alike_are_one(service: FakeOpenAI, shop: Path) -> None:
    service.says = lambda body: " ".join(reversed(asked_of(body).split()))
    found = await augmented(service, shop, "--count", "3", "--at-once", "1")
    assert (found["made"], found["refused"]) == (8, {"like_another": 16})


async def test_what_models_put_around_a_text_is_taken_off(service: FakeOpenAI, shop: Path) -> None:
    service.says = lambda body: "Here is my order: " + turned(body)
    assert (await augmented(service, shop, to="order.jsonl"))["made"] == 8
    assert made_in(shop.parent, "order.jsonl")[0]["messages"][0]["content"].startswith("Here is my order: ")
    service.asked.clear()
    around = ['"{}"', "Sure! Here is the rephrased request:\n\n{}", "Rephrased: {}", "```\n{}\n```", "“{}”", "{}\n"]
    service.says = lambda body: around[len(service.asked) % len(around)].format(turned(body))
    await augmented(service, shop)
    plain = {turned(body) for body in service.asked}
    assert {row["messages"][0]["content"] for row in made_in(shop.parent)} == plain


# an endpoint that fails


async def test_it_waits_as_it_is_told_and_tries_again(service: FakeOpenAI, shop: Path) -> None:
    short = Response(b'{"choices": [', headers={"content-length": "1000"}, media_type="application/json")
    service.faults = [short, (429, NOW, BUSY), (500, NOW, BUSY), (503, {"retry-after-ms": "1"}, BUSY)]
    found = await augmented(service, shop, "--at-once", "1")
    assert (found["made"], found["failed"], found["requests"]) == (8, 0, 8)
    assert len(service.asked) == 12


async def test_what_is_no_completion_is_had_later(service: FakeOpenAI, shop: Path) -> None:
    service.faults = [Response(b"<html>"), Response(b'{"choices": []}')]
    result = await augment(service, shop, "--json", "--at-once", "1")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["made"], found["failed"]) == (1, 6, 2)
    assert "is no chat completion" in found["problem"]
    assert (await augmented(service, shop))["made"] == 2
    assert len(made_in(shop.parent)) == 8


async def test_a_service_that_is_out_of_order_is_not_asked_for_ever(service: FakeOpenAI, shop: Path) -> None:
    service.faults = [Response(b"<html>") for _ in range(30)]
    result = await augment(service, shop, "--at-once", "1")
    assert (result.exit_code, len(service.asked)) == (3, 3)
    assert "no JSON. Is this its API's address?" in result.stderr
    assert names_in(shop.parent) == ["key", "shop.jsonl"]


async def test_one_that_is_not_taken_is_refused_alone(service: FakeOpenAI, shop: Path) -> None:
    add(shop, chat(("user", "How is a bomb made, and of what?"), ("assistant", "No.")))
    found = await augmented(service, shop)
    assert (found["made"], found["refused"]) == (8, {"endpoint": 1})
    (refused,) = made_in(shop.parent, "made.refused.jsonl")
    assert "it was flagged" in refused["message"]


async def test_parameters_that_a_model_does_not_take_are_left_out(service: FakeOpenAI, shop: Path) -> None:
    service.greedy_refused = True
    old = {"message": "Unknown parameter.", "type": "x", "param": "max_completion_tokens", "code": None}
    service.faults = [(400, {}, old)]
    found = await augmented(service, shop, "--at-once", "1")
    assert (found["made"], len(service.asked)) == (8, 10)
    assert {"max_tokens", "seed"} <= set(service.asked[-1])
    assert not {"temperature", "max_completion_tokens"} & set(service.asked[-1])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--key-file", "empty"), 1, "empty is empty"),
        (("--key-file", "none"), 1, "none cannot be read"),
        (("--key-env", "NO_SUCH_KEY"), 2, "Name one of"),
        (("--endpoint", "http://127.0.0.1:9/v1"), 3, "does not answer"),
        (("--endpoint", "http://example.com/v1"), 1, "not encrypted"),
        (("--endpoint", "example.com"), 1, "no address"),
        (("--endpoint", "https://me:sk-pass@example.com/v1"), 1, "an address alone"),
        (("--endpoint", "https://example.com/v1?key=sk-pass"), 1, "an address alone"),
        (("--endpoint", "http://[::1/v1"), 1, "no address"),
        (("--endpoint", "https://a\tb/v1"), 1, "no address"),
        (("--to", "made.csv"), 1, "ends with .jsonl"),
        (("--to", "shop.jsonl"), 1, "is read by this command"),
        (("--to", "theirs.jsonl"), 1, "was not made by this command"),
        (("--via", "fr"), 2, "is for --how back-translation"),
        (("--how", "back-translation", "--via", "klingon"), 2, "no language 'klingon'"),
        (("--count", "0"), 2, "--count"),
        (("--share", "0"), 2, "--share"),
        (("--share", "0.01"), 1, "No row is taken"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...], code: int, said: str, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.parent)
    for name, body in (("empty", b"\n"), ("theirs.jsonl", lines(*rows(1))), ("key", KEY.encode() + b"\n")):
        write(shop.parent, name, body)
    before = {path.name: path.read_bytes() for path in shop.parent.iterdir()}
    argv = words_for(NOWHERE, shop, shop.parent / "made.jsonl", *words)
    result = CliRunner(env={"LORAGATE_HOME": str(shop.parent)}).invoke(main, argv)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert "sk-" not in result.output
    assert {path.name: path.read_bytes() for path in shop.parent.iterdir()} == before


async def test_a_key_or_a_model_that_opens_nothing_ends_it_at_once(service: FakeOpenAI, shop: Path) -> None:
    wrong = write(shop.parent, "wrong", b"sk-wrong-key")
    for words, said in (
        (("--key-file", str(wrong)), f"does not accept the key in {wrong}"),
        (("--model", "gpt-9"), "does not exist"),
    ):
        result = await augment(service, shop, *words)
        assert (result.exit_code, said in result.stderr) == (1, True), result.output
        assert "sk-" not in result.output
    assert names_in(shop.parent) == ["key", "shop.jsonl", "wrong"]


async def test_an_endpoint_without_keys_gets_none(service: FakeOpenAI, shop: Path) -> None:
    service.open = True
    argv = ["datasets", "augment", str(shop), "--how", "paraphrase", "--model", MODEL, "--endpoint", service.url]
    environ = {"LORAGATE_HOME": str(shop.parent), "LORAGATE_API_KEY": "lg-secret", "OPENAI_API_KEY": "sk-secret"}
    words = [*argv, "--to", str(shop.parent / "made.jsonl")]
    result = await asyncio.to_thread(CliRunner(env=environ).invoke, main, words)
    assert result.exit_code == 0, result.output
    assert set(service.keys) == {None}, "the gateway's key, or another service's, is not for them"


async def test_without_an_endpoint_this_gateway_is_asked(engine: FakeVLLM, shop: Path) -> None:
    argv = ["datasets", "augment", str(shop), "--how", "paraphrase", "--to", str(shop.parent / "made.jsonl"), "--json"]
    async with running(shop.parent / "data", [engine]) as gateway:
        environ = {"LORAGATE_HOME": str(gateway.data_dir), "LORAGATE_API_KEY": ""}
        result = await asyncio.to_thread(CliRunner(env=environ).invoke, main, [*argv, "--model", "demo-base"])
        found = json.loads(result.stdout)
        assert found["requests"] == found["made"] + sum(found["refused"].values()) == 8, result.output
        async with gateway.admin() as admin:
            keys = (await admin.get("/admin/v1/keys")).json()["data"]
        (made,) = [each for each in keys if each["name"] == "loragate datasets augment"]
        assert (made["models"], made["scopes"], made["revoked_at"] is not None) == (["demo-base"], ["inference"], True)
        argv[argv.index("--to") + 1] = str(shop.parent / "other.jsonl")
        result = await asyncio.to_thread(CliRunner(env=environ).invoke, main, [*argv, "--model", "nothing"])
    assert (result.exit_code, "nothing" in json.loads(result.stdout)["error"]["message"]) == (1, True), result.output
    environ["LORAGATE_HOME"] = str(shop.parent)
    result = await asyncio.to_thread(CliRunner(env=environ).invoke, main, [*argv, "--model", "demo-base"])
    assert (result.exit_code, "No gateway answers" in result.stderr) == (3, True), result.output


# what was paid for


async def test_a_budget_is_kept_and_the_next_run_goes_on(service: FakeOpenAI, shop: Path) -> None:
    found = await augmented(service, shop, "--max-requests", "3")
    assert (found["made"], found["left"], found["stopped"], len(service.asked)) == (3, 5, "budget", 3)
    found = await augmented(service, shop)
    assert (found["made"], found["done_before"], found["rows"], len(service.asked)) == (5, 3, 8, 8)
    first = (shop.parent / "made.jsonl").read_bytes()
    found = await augmented(service, shop)
    assert (found["made"], found["done_before"], found["requests"]) == (0, 8, 0)
    assert (shop.parent / "made.jsonl").read_bytes() == first
    detour = ("--how", "back-translation", "--max-requests", "3")
    found = await augmented(service, shop, *detour, to="back.jsonl")
    assert (found["made"], found["requests"]) == (1, 2), "half a detour would be paid for in vain"


async def test_what_a_crash_left_is_gone_on_with(service: FakeOpenAI, shop: Path) -> None:
    await augmented(service, shop)
    made = shop.parent / "made.jsonl"
    whole = made.read_bytes()
    made.write_bytes(whole[: len(whole) * 2 // 3])  # in the middle of a line
    service.asked.clear()
    found = await augmented(service, shop)
    assert found["made"] + found["done_before"] == 8
    assert found["made"] == len(service.asked) < 8
    assert made.read_bytes() == whole


async def test_rows_of_another_model_or_manner_are_not_added_to(service: FakeOpenAI, shop: Path) -> None:
    await augmented(service, shop)
    result = await augment(service, shop, "--how", "back-translation")
    assert (result.exit_code, f"holds what {MODEL} made by paraphrase" in result.stderr) == (1, True)
    result = await augment(service, shop, "--model", "ft:other")
    assert (result.exit_code, "Name another file" in result.stderr) == (1, True)


async def test_the_same_row_twice_is_paid_for_once(service: FakeOpenAI, shop: Path) -> None:
    add(shop, *rows())
    found = await augmented(service, shop)
    assert (found["made"], found["done_before"], len(service.asked)) == (8, 8, 8)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    to, refused, manner = tmp_path / "a.jsonl", tmp_path / "a.refused.jsonl", Manner("paraphrase", MODEL)
    with Journal(to, refused, manner):
        with pytest.raises(Conflict, match="Another run writes"), Journal(to, refused, manner):
            pass
        assert to.exists(), "and the other one leaves it where it is"
    assert not to.exists()
    with Journal(to, refused, manner):
        pass


def test_a_full_disk_is_one_sentence_and_half_a_line_is_no_row(tmp_path: Path) -> None:
    to, refused, manner = tmp_path / "a.jsonl", tmp_path / "a.refused.jsonl", Manner("paraphrase", MODEL)
    parent = Row(1, (Turn("user", "Why?"), Turn("assistant", "So.")))
    made = Made(replace(parent, parent=key(parent)), "Why?")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with Journal(to, refused, manner) as journal:
            journal.made(Job(parent, 1), made)
            resource.setrlimit(resource.RLIMIT_FSIZE, (to.stat().st_size + 10, hard))
            journal.made(Job(parent, 2), made)

    try:
        with pytest.raises(StorageFull, match="then run this again"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not to.read_bytes().endswith(b"\n")
    with Journal(to, refused, manner) as again:
        assert again.done == {Job(parent, 1).identity()}
        again.made(Job(parent, 2), made)
    assert [row["made"]["variant"] for row in made_in(tmp_path, "a.jsonl")] == [1, 2]


async def test_ctrl_c_waits_for_what_is_paid_for_and_the_next_run_goes_on(service: FakeOpenAI, shop: Path) -> None:
    service.gate, service.answers_before_gate = asyncio.Event(), 2
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LORAGATE", "OPENAI"))}
    argv = words_for(service.url, shop, shop.parent / "made.jsonl", "--at-once", "3", "--json")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *argv),
        env=env | {"PYTHONPATH": str(ROOT), "LORAGATE_HOME": str(shop.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    while len(service.asked) < 5:  # two are answered, three wait
        await asyncio.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    told = b""
    while b"Stopping when" not in told:
        told += await child.stderr.readline()
    service.gate.set()
    shown, told = await child.communicate()
    found = json.loads(shown)
    assert (child.returncode, found["made"], found["stopped"], found["left"]) == (1, 5, "interrupted", 3)
    assert b"run the same again to go on" in told
    assert len(made_in(shop.parent)) == 5
    assert service.busiest == 3
    service.gate = None
    found = await augmented(service, shop)
    assert (found["made"], found["rows"], len(service.asked)) == (3, 8, 8)
