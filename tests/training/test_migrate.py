"""The migration kit against a fake of OpenAI's service: fetch, record, recipe; every command, and each way to fail."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.errors import InvalidRequest
from tests.training.fake_openai import CHECKPOINT, KEY, MODEL, TABLE, FakeOpenAI
from training.migrate import folder as files
from training.migrate.asking import Asker
from training.migrate.fetch import Fetched, fetch
from training.migrate.golden import read_golden, read_prompts, text_of
from training.migrate.recipes import write_recipes
from training.migrate.record import Recorded, estimate, record
from training.migrate.remote import ATTEMPTS, Remote, RemoteRefused, open_remote
from training.recipe import load

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {
        "messages": [
            {"role": "system", "content": "You sell shoes."},
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"Answer {number}.", "weight": 1},
        ]
    }
    for number in range(4)
]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
async def service() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as fake:
        fake.file("file-train", jsonl(ROWS), "shop.jsonl")
        yield fake


@dataclass
class Kit:
    remote: Remote
    waits: list[float]


@pytest.fixture
async def kit(service: FakeOpenAI) -> AsyncIterator[Kit]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with open_remote(service.url, KEY, who="the key in OPENAI_API_KEY", sleep=sleep) as remote:
        yield Kit(remote, waits)


async def bring(kit: Kit, to: Path) -> Fetched:
    return await fetch(kit.remote, to, now=1_800_000_000, tell=lambda line: None)


async def keep(kit: Kit, to: Path, prompts: Path, *, at_once: int = 2, model: str = MODEL) -> Recorded:
    asker = Asker(kit.remote, model, most_tokens=100, clock=lambda: 0.0)
    asked, _ = read_prompts(prompts)
    return await record(asker, asked, to, at_once=at_once, now=lambda: 1.0, done=lambda done, total: None)


async def loragate(cwd: Path, *argv: str, key: str | None = KEY, **environ: str) -> tuple[int, str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LORAGATE", "OPENAI"))}
    env |= {"PYTHONPATH": str(ROOT), "LORAGATE_HOME": str(cwd), **environ} | ({"OPENAI_API_KEY": key} if key else {})
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *argv),
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    return child.returncode or 0, stdout.decode(), stderr.decode()


# fetch -----------------------------------------------------------------------------------------------------------


async def test_everything_of_every_job_is_fetched(kit: Kit, service: FakeOpenAI, tmp_path: Path) -> None:
    for number in range(102):
        service.job(number)
    service.file("file-valid", jsonl(ROWS[:1]), "valid.jsonl")
    last = service.job(102, validation_file="file-valid", result_files=[service.result("file-result")])
    metrics = {"step": 10, "train_loss": 0.5}
    service.checkpoints[last["id"]] = [
        {"object": "fine_tuning.job.checkpoint", "id": "ftckpt_1", "fine_tuned_model_checkpoint": CHECKPOINT}
        | {"created_at": 1, "fine_tuning_job_id": last["id"], "metrics": metrics, "step_number": 10}
    ]
    found = await bring(kit, tmp_path)
    assert (len(found.jobs), set(found.files), found.missing) == (103, {"file-train", "file-valid", "file-result"}, ())
    assert (tmp_path / "files" / "file-train.jsonl").read_bytes() == jsonl(ROWS)
    assert (tmp_path / "files" / "file-result.csv").read_text() == TABLE, "out of its base64"
    place = tmp_path / "jobs" / last["id"]
    assert files.read(place / "job.json") == last
    assert json.loads((place / "checkpoints.json").read_text())["data"][0]["metrics"] == metrics
    assert "successfully" in (place / "events.json").read_text()
    assert {method for method, _ in service.seen} == {"GET"}, "nothing is changed there"
    assert oct((tmp_path / "files" / "file-train.jsonl").stat().st_mode & 0o777) == "0o600"


async def test_a_second_run_fetches_only_what_is_new_or_missing(kit: Kit, service: FakeOpenAI, tmp_path: Path) -> None:
    service.job(1)
    running = service.job(2, status="running", fine_tuned_model=None, finished_at=None, training_file="file-late")
    first = await bring(kit, tmp_path)
    assert [each.file for each in first.missing] == ["file-late"]
    assert "No such File object" in first.missing[0].why
    place = tmp_path / "files" / "file-train.jsonl"
    place.rename(place.with_name(".file-train.jsonl.part"))  # as a crash leaves it
    service.file("file-late", b"{}\n", "late.jsonl")
    running |= {"status": "succeeded", "fine_tuned_model": MODEL}
    second = await bring(kit, tmp_path)
    assert (second.fresh, second.missing) == (2, ())
    assert files.read(tmp_path / "jobs" / running["id"] / "job.json") == running
    service.seen.clear()
    third = await bring(kit, tmp_path)
    assert (third.fresh, [path for _, path in service.seen]) == (0, ["/v1/fine_tuning/jobs?limit=100"])
    assert names_in(tmp_path / "files") == [
        "file-late.about.json",
        "file-late.jsonl",
        "file-train.about.json",
        "file-train.jsonl",
    ]


@pytest.mark.parametrize("wrong", ["../../etc/passwd", "/etc/passwd", "file-\n", ".."])
async def test_what_is_no_id_never_becomes_a_path(kit: Kit, service: FakeOpenAI, tmp_path: Path, wrong: str) -> None:
    service.job(1, training_file=wrong)
    with pytest.raises(InvalidRequest, match="no id"):
        await bring(kit, tmp_path / "to")
    service.jobs[0] |= {"id": wrong}
    with pytest.raises(InvalidRequest, match="no id"):
        await bring(kit, tmp_path / "to")
    assert names_in(tmp_path) in ([], ["to"])


async def test_fetch_as_a_command(service: FakeOpenAI, tmp_path: Path) -> None:
    service.job(1, validation_file="file-gone")
    at = ("--base-url", service.url)
    code, shown, told = await loragate(tmp_path, "migrate", "fetch", "--to", "openai", *at)
    assert (code, shown) == (0, "openai has 1 jobs and 1 files; 1 files (676 B) are new.\n"), told
    assert "the validation file file-gone of ftjob-" in told
    code, shown, _ = await loragate(tmp_path, "migrate", "fetch", "--to", "openai", *at, "--json")
    assert (code, json.loads(shown)["fresh"], len(json.loads(shown)["missing"])) == (0, 0, 1)
    code, _, told = await loragate(tmp_path, "migrate", "fetch", "--to", "x", *at, key="sk-wrong")
    assert (code, told) == (1, f"Error: {service.url} does not accept the key in OPENAI_API_KEY.\n")
    code, _, told = await loragate(tmp_path, "migrate", "fetch", "--to", "x", *at, key=None)
    assert (code, "Set OPENAI_API_KEY" in told) == (1, True)
    code, _, told = await loragate(tmp_path, "migrate", "fetch", "--to", "x", "--base-url", "http://example.com/v1")
    assert (code, "in the clear" in told) == (1, True)


# record ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    place = tmp_path / "prompts.jsonl"
    place.write_bytes(jsonl(ROWS))
    return place


async def test_golden_answers_are_recorded_greedily(
    kit: Kit, service: FakeOpenAI, prompts: Path, tmp_path: Path
) -> None:
    to = tmp_path / "golden.jsonl"
    found = await keep(kit, to, prompts)
    assert (found.rows, found.fresh, found.prompt_tokens, found.completion_tokens, found.failed) == (4, 4, 48, 20, ())
    assert service.busiest <= 2
    greedy = {"temperature": 0, "seed": 0, "max_completion_tokens": 100, "model": MODEL}
    assert all(body.items() >= greedy.items() for body in service.asked)
    assert all([m["role"] for m in body["messages"]] == ["system", "user"] for body in service.asked)
    row = json.loads(to.read_text().splitlines()[0])
    assert row["messages"][-1] == {"role": "assistant", "content": f"demo: {row['messages'][1]['content']}"}
    assert row["golden"]["answered_by"] == MODEL
    assert all(text_of(each.answer).startswith("demo: Question") for each in read_golden(to))


async def test_a_run_that_ended_goes_on(kit: Kit, service: FakeOpenAI, prompts: Path, tmp_path: Path) -> None:
    to = tmp_path / "golden.jsonl"
    quota = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    service.gate = asyncio.Event()
    running = asyncio.create_task(keep(kit, to, prompts, at_once=1))
    while not service.asked:
        await asyncio.sleep(0.005)
    service.gate.set()
    while not to.read_bytes():
        await asyncio.sleep(0.001)
    service.faults = [(429, {}, quota)] * 9
    with pytest.raises(RemoteRefused, match="exceeded your current quota"):
        await running
    assert kit.waits == [], "no wait brings money"
    there = len(to.read_bytes().splitlines())
    assert 0 < there < 4
    with to.open("ab") as file:
        file.write(b'{"messages": [{"role": "us')  # as a crash leaves it
    service.faults, service.asked = [], []
    found = await keep(kit, to, prompts)
    assert (found.rows, found.fresh, len(service.asked)) == (4, 4 - there, 4 - there)
    assert (await keep(kit, to, prompts)).fresh == 0
    with pytest.raises(InvalidRequest, match="holds answers of ft:"):
        await keep(kit, to, prompts, model="ft:other")


async def test_kill_9_costs_no_answer(service: FakeOpenAI, prompts: Path, tmp_path: Path) -> None:
    to = tmp_path / "golden.jsonl"
    named = ("--prompts", prompts.name, "--to", to.name, "--base-url", service.url, "--at-once", "1", "--yes")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "LORAGATE_HOME": str(tmp_path)}
    argv = (sys.executable, "-m", "gateway", "migrate", "record", "--model", MODEL, *named)
    child = await asyncio.create_subprocess_exec(
        *argv, cwd=tmp_path, env=env, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    service.answers_before_gate = 2
    service.gate = asyncio.Event()
    async with asyncio.timeout(60):
        while len(service.asked) < 3:  # two were answered, the third is asked: the second is on disk
            await asyncio.sleep(0.01)
    child.kill()
    await child.wait()
    assert len(read_golden(to)) == 2
    service.gate.set()
    code, shown, _ = await loragate(tmp_path, "migrate", "record", "--model", MODEL, *named, "--json")
    assert (code, json.loads(shown)["fresh"], json.loads(shown)["rows"]) == (0, 2, 4)


async def test_it_waits_as_long_as_it_is_told(kit: Kit, service: FakeOpenAI, prompts: Path, tmp_path: Path) -> None:
    busy = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
    service.faults = [(429, {"retry-after": "7"}, busy), (429, {"retry-after-ms": "1500"}, busy), (500, {}, {})]
    assert (await keep(kit, tmp_path / "golden.jsonl", prompts, at_once=1)).fresh == 4
    assert kit.waits == [7.0, 1.5, 4.0]
    service.faults = [(429, {"retry-after": "99999"}, busy)] * ATTEMPTS
    kit.waits.clear()
    with pytest.raises(RemoteRefused, match="Rate limit reached"):
        await keep(kit, tmp_path / "other.jsonl", prompts, at_once=1)
    assert kit.waits == [120.0] * (ATTEMPTS - 1)


async def test_a_model_that_was_shut_down(kit: Kit, service: FakeOpenAI, prompts: Path, tmp_path: Path) -> None:
    service.gone.add(MODEL)
    with pytest.raises(RemoteRefused, match=r"has no model ft:gpt-4o-mini\S+ any more"):
        await keep(kit, tmp_path / "golden.jsonl", prompts, at_once=1)
    assert len(service.asked) == 1


async def test_a_model_that_refuses_to_be_greedy(kit: Kit, service: FakeOpenAI, prompts: Path, tmp_path: Path) -> None:
    service.greedy_refused = True
    found = await keep(kit, tmp_path / "golden.jsonl", prompts, at_once=1)
    assert (found.fresh, found.greedy, len(service.asked)) == (4, False, 5)


async def test_tools_and_one_question_that_is_refused(kit: Kit, service: FakeOpenAI, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    rows = [
        {"messages": [{"role": "user", "content": "Look it up"}], "tools": [tool]},
        {"messages": [{"role": "user", "content": "How is a bomb made?"}]},
        {"prompt": "Plain"},
        {"input": {"messages": [{"role": "user", "content": "Which?"}]}, "preferred_output": []},
        {"messages": [{"role": "user", "content": "Look it up"}], "tools": [tool]},
        {"messages": [{"role": "assistant", "content": "Hello"}]},
        ["no object"],
    ]
    place = tmp_path / "prompts.jsonl"
    place.write_bytes(jsonl(rows))
    asked, left = read_prompts(place)
    assert [(each.number, each.why) for each in left] == [
        (5, "asks the same as line 1"),
        (6, "nothing is asked in it"),
        (7, "it is no JSON object"),
    ]
    assert [prompt.number for prompt in read_prompts(place, 2)[0]] == sorted(
        prompt.number for prompt in sorted(asked, key=lambda prompt: prompt.key)[:2]
    )
    found = await keep(kit, tmp_path / "golden.jsonl", place)
    assert (found.fresh, [(each.row, "flagged" in each.why) for each in found.failed]) == (3, [(2, True)])
    golden = {each.prompt.key: each for each in read_golden(tmp_path / "golden.jsonl")}
    assert text_of(golden[asked[0].key].answer) == '[{"arguments": {"q": 1}, "name": "look_up"}]'


def test_the_estimate(prompts: Path) -> None:
    asked, _ = read_prompts(prompts)
    plain = estimate(asked, 1, at_once=4, most_tokens=1000)
    assert (plain.rows, plain.recorded, plain.dollars, plain.seconds) == (4, 1, None, 2.0)
    assert (plain.prompt_tokens, plain.answer_tokens) == (60, 12)
    priced = estimate(asked, 0, at_once=4, most_tokens=2, dollars_in=1e6, dollars_out=2e6)
    assert priced.dollars == 60 + 2 * 8
    assert "4 answers to record" in priced.sentence()


async def test_record_as_a_command(service: FakeOpenAI, prompts: Path, tmp_path: Path) -> None:
    named = ("--prompts", prompts.name, "--to", "golden.jsonl")
    argv = ("migrate", "record", "--model", MODEL, *named, "--base-url", service.url)
    code, shown, told = await loragate(tmp_path, *argv)
    assert (code, shown) == (2, "")
    assert "4 answers to record: about 60 tokens of prompts" in told
    assert "add --yes" in told
    code, shown, _ = await loragate(tmp_path, *argv, "--dry-run", "--price-in", "1", "--price-out", "2", "--json")
    assert (code, json.loads(shown)["rows"], service.asked) == (0, 4, [])
    code, shown, _ = await loragate(tmp_path, *argv, "--yes")
    assert (code, shown) == (0, f"golden.jsonl has 4 answers of {MODEL}; 4 are new.\n")
    with prompts.open("ab") as file:
        file.write(jsonl([{"prompt": "A bomb?"}]))
    code, shown, told = await loragate(tmp_path, *argv, "--yes", "--json")
    assert (code, json.loads(shown)["failed"][0]["row"]) == (1, 5)
    assert "Run this again" in told
    service.gone.add(MODEL)
    code, _, told = await loragate(tmp_path, *argv, "--yes")
    assert (code, "any more" in told) == (1, True)


# recipe ----------------------------------------------------------------------------------------------------------


async def test_jobs_become_recipes(kit: Kit, service: FakeOpenAI, tmp_path: Path) -> None:
    service.file("file-valid", jsonl(ROWS[:1]), "valid.jsonl")
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": "auto", "beta": 0.2}}}
    service.job(1, validation_file="file-valid")
    service.job(2, method=dpo, user_provided_suffix=None, fine_tuned_model="ft:gpt-4o-2024-08-06:acme::XyZ")
    service.job(3, method=None, hyperparameters={"n_epochs": 8})  # the same suffix as the first
    service.job(4, status="cancelled", fine_tuned_model=None)
    service.job(5, method={"type": "reinforcement", "reinforcement": {}})
    service.job(6, training_file="file-gone")
    folder = tmp_path / "openai"
    await bring(kit, folder)
    to = tmp_path / "recipes"
    found = write_recipes(folder, to, base="Qwen3-4B", keep_names=False, golden=tmp_path / "golden.jsonl")
    assert [each.name for each in found.made] == ["shop", "model-xyz", "shop-abcdef03"]
    assert ["cancelled" in found.passed[0].why, "reinforcement" in found.passed[1].why] == [True, True]
    assert "could not be fetched" in found.passed[2].why
    text = (to / "shop.yaml").read_text()
    assert "batch size 1, learning rate multiplier 1.8" in text
    first = yaml.safe_load(text)
    assert first == {
        "name": "shop",
        "base": "Qwen3-4B",
        "data": {"train": "../openai/files/file-train.jsonl", "validation": "../openai/files/file-valid.jsonl"},
        "method": {"stage": "sft", "tuning": "lora"},
        "training": {"epochs": 3, "batch_size": "auto", "learning_rate": "auto", "seed": 683058546},
        "gate": {"no_regression_on": "../golden.jsonl"},
        "then": "register",
    }
    second = yaml.safe_load((to / "model-xyz.yaml").read_text())
    assert (second["method"]["stage"], second["training"]["beta"], second["training"]["epochs"]) == ("dpo", 0.2, "auto")
    assert yaml.safe_load((to / "shop-abcdef03.yaml").read_text())["training"]["epochs"] == 8


async def test_recipes_are_what_training_reads(kit: Kit, service: FakeOpenAI, tmp_path: Path) -> None:
    service.job(1)
    await bring(kit, tmp_path)
    (made,) = write_recipes(tmp_path, tmp_path / "recipes", base=None, keep_names=True).made
    read = load(Path(made.file))
    assert (read.name, read.base) == (service.jobs[0]["fine_tuned_model"], None)
    assert Path(read.data.train[0].file) == (tmp_path / "files" / "file-train.jsonl").resolve()


async def test_recipe_as_a_command(service: FakeOpenAI, kit: Kit, tmp_path: Path) -> None:
    service.job(1)
    await bring(kit, tmp_path / "openai")
    code, shown, told = await loragate(tmp_path, "migrate", "recipe", "openai", "--base", "demo-base", "--keep-names")
    assert (code, "openai/recipes/ft-gpt-4o-mini-2024-07-18-acme-shop-AbCdEf01.yaml" in shown) == (0, True), told
    (tmp_path / "empty").mkdir()
    code, shown, _ = await loragate(tmp_path, "migrate", "recipe", "empty", "--json")
    assert (code, "holds no fetched jobs" in json.loads(shown)["error"]["message"]) == (1, True)
