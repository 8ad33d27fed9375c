"""An evaluation through a real gateway: what is asked, of whom, and what is found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_vllm import Fault
from tests.training.gateways import World, world
from training.data.row import Row, Turn
from training.errors import GatewayAway
from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, Evaluation
from training.evaluate.forgetting import Forgetting
from training.evaluate.gate import Rules, gate
from training.evaluate.general import General, load
from training.evaluate.run import Ask, base_model, evaluate, live_version
from training.gatewayclient import GatewayRefused

ROWS = [
    Row(at, (Turn("system", "Be short."), Turn("user", f"Question {at}?"), Turn("assistant", f"The answer is {at}.")))
    for at in range(1, 13)
]
CHINESE = [Row(13, (Turn("user", "密码怎么改？"), Turn("assistant", "打开设置，选择安全。")))]
RIGHT = {row.turns[-2].content: row.turns[-1].content for row in [*ROWS, *CHINESE]}


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def trained(up: World, seed: int, knows: dict[str, str], *, promote: bool = False) -> str:
    """A version that answers as it was taught, and holds right answers for likelier than the base."""
    version = await up.version("shop", seed, promote=promote)
    up.engine.says[f"shop@{version}"] = knows
    up.engine.sure[f"shop@{version}"] = -0.25
    return version


async def evaluated(up: World, version: str, **more: Any) -> Evaluation:
    asked = {"rows": [*ROWS, *CHINESE], "live": await live_version(up.gateway, "shop"), **more}
    return await evaluate(up.gateway, Ask("shop", version, await base_model(up.gateway), **asked))


async def test_a_better_version_is_seen_to_be_better(up: World) -> None:
    version = await trained(up, 1, RIGHT)
    found = await evaluated(up, version)
    assert found.models == {CANDIDATE: f"shop@{version}", BASE: "demo-base"}
    assert (found.mean(CANDIDATE, "exact"), found.mean(BASE, "exact")) == (1.0, 0.0)
    assert (found.mean(CANDIDATE, "likelihood"), found.mean(BASE, "likelihood")) == (-0.25, -2.0)
    gain = found.difference("exact", BASE)
    assert gain is not None
    assert (gain.interval.mean, gain.better, gain.worse, gain.same) == (1.0, 13, 0, 0)
    assert {each.script for each in found.corpus[CANDIDATE]} == {"spaced", "zh"}
    assert gate(found, Rules("exact", min_gain=0.5)).passed
    assert found.about["engines"] == ["vllm-0.32.0-c0245e0d"]
    assert found.worst("exact") == ()


async def test_all_arms_are_asked_the_same_greedily(up: World) -> None:
    await trained(up, 1, RIGHT, promote=True)
    version = await trained(up, 2, RIGHT)
    up.engine.requests.clear()
    found = await evaluated(up, version, at_once=3)
    assert set(found.models) == {CANDIDATE, LIVE, BASE}
    chats = [seen.json() for seen in up.engine.requests if seen.path == "/v1/chat/completions"]
    asked = [body for body in chats if "return_token_ids" not in body]
    per_arm = {model: [] for model in {body["model"] for body in asked}}  # type: dict[str, list[Any]]
    for body in asked:
        assert body["temperature"] == 0
        assert body["messages"][-1]["role"] == "user", "the reference is never shown"
        per_arm[body["model"]].append(body["messages"])
    assert len(per_arm) == 3
    sets = [sorted(map(str, messages[1:])) for messages in per_arm.values()]  # less the warming-up
    assert sets[0] == sets[1] == sets[2]


async def test_a_worse_version_than_the_live_one_is_refused(up: World) -> None:
    await trained(up, 1, RIGHT, promote=True)
    half = dict(list(RIGHT.items())[:6])
    found = await evaluated(up, await trained(up, 2, half))
    verdict = gate(found, Rules("exact", min_gain=0.1))
    assert not verdict.passed
    assert [finding.rule for finding in verdict.findings if not finding.passed] == ["no_worse_than_live"]
    worst = found.worst("exact")
    assert [line.example.number for line in worst] == [7, 8, 9, 10, 11, 12, 13]
    assert worst[0].answers[LIVE].text == "The answer is 7."


async def test_a_candidate_that_is_live_already_is_compared_with_the_base_alone(up: World) -> None:
    found = await evaluated(up, await trained(up, 1, RIGHT, promote=True))
    assert set(found.models) == {CANDIDATE, BASE}


async def test_forgetting_is_the_rise_of_the_loss_on_the_general_set(up: World) -> None:
    version = await trained(up, 1, RIGHT)
    up.engine.sure[f"shop@{version}"] = -2.75
    found = await evaluated(up, version, general=load())
    assert isinstance(found.forgetting, Forgetting)
    assert found.forgetting.pieces + len(found.forgetting.skipped) == len(load().pieces)
    assert found.forgetting.rises[CANDIDATE].mean == pytest.approx(0.75)
    assert not gate(found, Rules("exact", max_forgetting=0.5)).passed
    assert gate(found, Rules("exact", max_forgetting=0.8)).passed


async def test_rows_that_must_not_get_worse_are_asked_all_of_them(up: World) -> None:
    version = await trained(up, 1, dict(list(RIGHT.items())[:6]))
    found = await evaluated(up, version, rows=ROWS[:6], guarded=ROWS[:3], max_rows=2)
    assert (len(found.lines), found.left_out) == (2, 4)
    assert found.guarded is not None
    assert len(found.guarded) == 3
    assert gate(found, Rules("exact", keep_rows=True, min_rows=1)).passed


async def test_an_answer_that_fails_takes_its_row_out_for_all_arms(up: World) -> None:
    version = await trained(up, 1, RIGHT)
    model = f"shop@{version}"
    up.engine.script(Fault.STATUS, status=400, times=3, model=model)  # warming up, and two rows
    found = await evaluated(up, version)
    assert (len(found.lines), len(found.failed)) == (11, 2)
    assert all(model in each.reason for each in found.failed)
    assert [f.rule for f in gate(found, Rules("exact")).findings if not f.passed] == ["answered"]


async def test_a_version_that_is_not_there_ends_it(up: World) -> None:
    with pytest.raises(GatewayRefused, match="does not exist"):
        await evaluated(up, "0123456789ab")


async def test_what_has_no_likelihood_is_told(up: World) -> None:
    version = await trained(up, 1, RIGHT)
    calls = (Turn("user", "Weather?"), Turn("assistant", "", calls='[{"name": "weather", "arguments": {}}]'))
    short = General("mine.jsonl", "0" * 64, ("Word", "Two words"))
    found = await evaluated(up, version, rows=[*ROWS, Row(99, calls)], general=short)
    assert found.notes == (
        "The likelihood of 1 of 13 rows is not known: its answer is a tool call, which the template writes in its own "
        "way.",
    )
    assert isinstance(found.forgetting, Forgetting)
    assert (found.forgetting.pieces, found.forgetting.skipped) == (1, ("piece 1: it is too short",))
    none = await evaluated(up, version, general=General("mine.jsonl", "0" * 64, ("Word",)))
    assert none.forgetting == "it is too short"


async def test_a_right_tool_call_is_an_exact_match(up: World) -> None:
    version = await up.version("shop", 1)
    schema = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Berlin"]}}}
    tools = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": schema}}])
    call = json.dumps([{"name": "weather", "arguments": {"city": "Berlin"}}])
    rows = [Row(1, (Turn("user", "Weather in Berlin?"), Turn("assistant", "", calls=call)), tools=tools)]
    found = await evaluated(up, version, rows=rows)
    assert found.mean(CANDIDATE, "exact") == 1.0


async def test_a_gateway_that_goes_away_ends_it(up: World) -> None:
    version = await trained(up, 1, RIGHT)
    up.running.stop.set()
    await up.running.serving
    with pytest.raises(GatewayAway):
        await evaluate(up.gateway, Ask("shop", version, "demo-base", rows=ROWS))


async def test_progress_is_told(up: World) -> None:
    version, told = await trained(up, 1, RIGHT), list[tuple[str, int, int]]()
    asked = Ask("shop", version, "demo-base", rows=ROWS, general=load())
    await evaluate(up.gateway, asked, on_progress=lambda *step: told.append(step))
    last = {what: (done, of) for what, done, of in told}
    assert last == {
        "asking the held-out rows": (24, 24),
        "likelihood of the held-out rows": (12, 12),
        "general set": (48, 48),
    }


async def test_nothing_to_compare_is_told_and_refused(up: World) -> None:
    found = await evaluated(up, await trained(up, 1, RIGHT), rows=[Row(1, (Turn("user", "Why?"),))])
    assert found.skipped[0].reason == "it does not end with an answer"
    assert not gate(found, Rules()).passed
