"""The judge: both orders, ties, and judges that favour a place, cannot be asked or say something else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.http import open_http
from tests.scripted_server import Peer, ScriptedServer
from tests.training.gateways import world
from training.data.row import Row, Turn
from training.evaluate.evaluation import BASE
from training.evaluate.example import Example
from training.evaluate.gate import Rules, gate
from training.evaluate.judge import Judge, JudgeAt, Judgement
from training.evaluate.run import Ask, evaluate

EXAMPLE = Example(1, ({"role": "user", "content": "Where is it?"},), "On the map.")
Says = Callable[[str], tuple[int, str]]


@asynccontextmanager
async def judge(says: Says) -> AsyncIterator[tuple[Judge, list[float], list[dict[str, Any]]]]:
    """A judge that answers to what it is shown as `says` says: status and text."""
    waits: list[float] = []
    seen: list[dict[str, Any]] = []

    async def play(peer: Peer) -> None:
        while True:
            _, raw = await peer.request()
            body = json.loads(raw)
            seen.append(body)
            status, word = says(body["messages"][-1]["content"])
            answer = json.dumps({"choices": [{"message": {"content": word}}]}).encode()
            head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(answer)}\r\nretry-after: 5\r\n\r\n"
            await peer.send(head.encode() + answer)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with ScriptedServer(play) as server, open_http() as http:
        yield Judge(http, JudgeAt(f"http://127.0.0.1:{server.port}/v1", "judge", "secret"), sleep), waits, seen


def first_answer(shown: str) -> str:
    return shown.partition("[First answer]\n")[2].partition("\n\n[Second answer]")[0]


@pytest.mark.parametrize(
    ("says", "judgement"),
    [
        (lambda shown: (200, "FIRST" if first_answer(shown) == "good" else "SECOND"), Judgement(score=1)),
        (lambda shown: (200, "SECOND" if first_answer(shown) == "good" else "FIRST"), Judgement(score=-1)),
        (lambda shown: (200, "TIE"), Judgement()),
        (lambda shown: (200, "FIRST"), Judgement(swayed=True)),
        (lambda shown: (200, "I think FIRST is vague. So: SECOND"), Judgement(swayed=True)),
        (lambda shown: (200, "Both are fine."), Judgement(failed=True)),
        (lambda shown: (401, ""), Judgement(failed=True)),
    ],
)
async def test_only_who_wins_in_both_orders_has_won(says: Says, judgement: Judgement) -> None:
    async with judge(says) as (asked, waits, seen):
        assert await asked.compare(EXAMPLE, "good", "bad") == judgement
    assert waits == []
    assert all("On the map." in body["messages"][-1]["content"] for body in seen)
    assert all(body["temperature"] == 0 for body in seen)


async def test_equal_answers_are_a_tie_without_asking() -> None:
    async with judge(lambda shown: (500, "")) as (asked, _, seen):
        assert await asked.compare(EXAMPLE, "same", "same") == Judgement()
    assert seen == []


async def test_a_busy_judge_is_asked_three_times() -> None:
    async with judge(lambda shown: (429, "")) as (asked, waits, seen):
        assert await asked.compare(EXAMPLE, "good", "bad") == Judgement(failed=True)
    assert waits == [5, 5] * 2
    assert len(seen) == 6


def test_the_judges_key_is_in_no_repr() -> None:
    assert "secret" not in repr(JudgeAt("http://x/v1", "judge", "secret"))


async def test_a_gate_may_go_by_the_judge(tmp_path: Path) -> None:
    rows = [Row(at, (Turn("user", f"Question {at}?"), Turn("assistant", f"Answer {at}."))) for at in range(1, 9)]
    async with world(tmp_path) as up:
        version = await up.version("shop", 1)

        def says(shown: str) -> tuple[int, str]:
            return 200, "FIRST" if first_answer(shown).startswith("shop") else "SECOND"

        async with judge(says) as (asked, _, _seen):
            found = await evaluate(up.gateway, Ask("shop", version, "demo-base", rows=rows), judge=asked)
    won = found.difference("judge", BASE)
    assert won is not None
    assert (won.interval.mean, won.better) == (1.0, 8)
    assert found.about["judge"] == "judge"
    assert gate(found, Rules("judge", min_gain=0.5)).passed
