"""The report: what a sceptic looks for is in it, and what models said cannot become markup."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.evaluate.figures import evaluation, failed, forgotten, lines
from training.evaluate import picture, report
from training.evaluate.asking import Answer
from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, Evaluation
from training.evaluate.example import Skipped
from training.evaluate.gate import Rules, gate

RULES = Rules("exact", min_gain=0.1, max_forgetting=1.0)


def made(**more: object) -> Evaluation:
    about = {
        "data": {"file": "valid.jsonl", "sha256": "f" * 64},
        "examples_sha256": "e" * 64,
        "seed": 42,
        "max_rows": 500,
        "asked": {"temperature": 0, "at_once": 8},
        "interval": {"confidence": 0.95, "resamples": 10000},
        "engines": ["vllm-0.32.0-c0245e0d"],
        "judge": None,
        "versions": {"sacrebleu": "2.6.0"},
    }
    found = lines(candidate=[1.0] * 6 + [0.0] * 24, live=[1.0] * 8 + [0.0] * 22, base=[0.0] * 30)
    fields = {"about": about, "forgetting": forgotten(0.1, 0.2), "notes": ("3 answers were cut off.",), **more}
    return evaluation(
        found, rows=40, left_out=3, skipped=(Skipped(9, "its answer is empty"),), failed=failed(1), **fields
    )


def test_the_three_files(tmp_path: Path) -> None:
    found = made()
    verdict = gate(found, RULES)
    files = report.write(found, RULES, verdict, tmp_path / "evaluation")
    assert [file.name for file in files] == ["evaluation.json", "report.md", "report.png"]
    document = json.loads(files[0].read_text(encoding="utf-8"))
    assert document["verdict"]["passed"] is verdict.passed
    assert len(document["lines"]) == 30
    assert document["lines"][0]["arms"]["live"]["answer"] == "live 1"
    assert document["rows"]["not_answered"][0]["row"] == 100
    size = struct.unpack(">II", files[2].read_bytes()[16:24])
    assert size == (1320, 935)


def test_the_text_says_which_rows_how_many_which_seed_and_which_engine() -> None:
    found = made()
    text = report.text(found, RULES, gate(found, RULES))
    for said in (
        "# Evaluation of shop@0123456789ab",
        "**refused** `no_worse_than_live`",
        "40 in valid.jsonl, 30 compared, 3 left out by sampling (at most 500, seed 42), 1 skipped, 1 not answered.",
        "vllm-0.32.0-c0245e0d",
        "Skipped: row 9, its answer is empty",
        "Not answered: row 100, demo-base was not answered",
        "3 answers were cut off.",
        "candidate `shop@0123456789ab`",
        "`" + "e" * 64 + "`",
    ):
        assert said in text, text
    assert text.count("### Row ") == 20


def test_what_models_say_stays_what_they_said() -> None:
    found = made()
    first = found.lines[6]
    wild = "# Ha\n| a | b |\n<script>alert(1)</script>\n" + "x" * 1000
    answers = {**first.answers, CANDIDATE: Answer(wild, "stop"), LIVE: Answer("", "stop"), BASE: Answer("b", "stop")}
    found = replace(found, lines=(*found.lines[:6], replace(first, answers=answers), *found.lines[7:]))
    text = report.text(found, RULES, gate(found, RULES))
    assert "\n    # Ha\n    | a | b |\n    <script>alert(1)</script>\n" in text
    assert "x" * 500 not in text
    assert "    (nothing)" in text


@pytest.mark.parametrize("forgetting", [None, "the engine gives no logprobs of a prompt"])
def test_what_was_not_measured_is_said(forgetting: str | None, tmp_path: Path) -> None:
    found = made(forgetting=forgetting)
    verdict = gate(found, Rules("exact"))
    text = report.text(found, RULES, verdict)
    assert f"Not measured: {forgetting or 'no general set was asked'}." in text
    report.write(found, RULES, verdict, tmp_path)


def test_nothing_compared_is_a_report_too(tmp_path: Path) -> None:
    found = evaluation((), failed=failed(2))
    files = report.write(found, RULES, gate(found, RULES), tmp_path)
    assert "Only 0 rows compared" in files[1].read_text(encoding="utf-8")


def test_a_summary_has_no_rows() -> None:
    summary = made().summary()
    assert "lines" not in summary
    assert "Question" not in json.dumps(summary)


def test_the_pictures_axes_are_honest() -> None:
    found = made()
    scores, differences, losses, rows = picture.figure(found, gate(found, RULES)).axes
    assert scores.get_xlim()[0] == losses.get_ylim()[0] == rows.get_xlim()[0] == 0
    assert scores.get_xlim()[1] > 1, "all of the scale, however low the scores are"
    assert sum(differences.get_xlim()) == pytest.approx(0)
    assert all(axis.get_title() and axis.get_xlabel() for axis in (scores, differences, rows))
    assert losses.get_ylabel() == "nats a token"
