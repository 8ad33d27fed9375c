"""BERTScore as an evaluation uses it: with a stand-in for the training environment, whose encoder knows equal texts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.evaluate.figures import line
from training.evaluate import measure
from training.evaluate.bertscore import BertScore
from training.evaluate.evaluation import BASE, CANDIDATE, Line, compare
from training.interpreter import ChildFailed, Interpreter

EQUAL = """
import json, pathlib, sys
asked = json.loads(pathlib.Path(sys.argv[-2]).read_text())
found = [1.0 if answer == reference else 0.5 for answer, reference in asked["pairs"]]
pathlib.Path(sys.argv[-1]).write_text(json.dumps({"f1": found}))
"""


def encoder(folder: Path, body: str = EQUAL) -> BertScore:
    script, python = folder / "stand_in.py", folder / "python"
    script.write_text(body)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return BertScore(Interpreter(python), folder)


def answered(number: int, right: bool) -> Line:
    """A row that the candidate answers rightly or not, and the base never."""
    made = line(number, {CANDIDATE: 0.0, BASE: 0.0})
    own = made.answers[CANDIDATE]
    return replace(
        made, answers={**made.answers, CANDIDATE: replace(own, text=made.example.reference if right else "")}
    )


async def test_each_answer_gets_its_own_score(tmp_path: Path) -> None:
    lines = [answered(number, number % 2 == 0) for number in range(1, 7)]
    scored = await measure.with_bertscore(encoder(tmp_path), lines)
    assert [each.scores[CANDIDATE]["bertscore"] for each in scored] == [0.5, 1.0, 0.5, 1.0, 0.5, 1.0]
    assert {each.scores[BASE]["bertscore"] for each in scored} == {0.5}
    [found] = [each for each in compare(scored, [BASE], seed=1) if each.metric == "bertscore"]
    assert (found.better, found.worse, found.same, found.interval.mean) == (3, 0, 3, 0.25)
    assert await measure.with_bertscore(encoder(tmp_path), []) == ()


@pytest.mark.parametrize(
    ("body", "said"),
    [("raise SystemExit('no such encoder')", "no such encoder"), (EQUAL.replace("found}", "found[1:]}"), "of 4 pairs")],
)
async def test_an_encoder_that_fails_is_told(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(ChildFailed, match=said):
        await measure.with_bertscore(encoder(tmp_path, body), [answered(1, True), answered(2, False)])
