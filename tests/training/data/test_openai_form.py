"""Rows written in OpenAI's forms are the same rows when they are read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.training.data import rows
from tests.training.data.corpus import chat, lines, write
from training.data.check import check
from training.data.finding import Finding
from training.data.openai_form import line
from training.data.reading import open_data
from training.data.row import Row, Turn
from training.data.upload import check_upload

SAME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def again(folder: Path, row: Row) -> Row | Finding:
    data = open_data(write(folder, "again.jsonl", line(row, {"source": "shop", "made": {"how": "paraphrase"}})))
    assert data.unused == ()
    (read,) = data.rows()
    return read


@SAME
@given(row=rows.conversations(weights=True) | rows.preferences() | rows.judged())
def test_a_row_is_the_same_again(row: Row, tmp_path: Path) -> None:
    child = replace(row, parent="0123456789abcdef")
    assert again(tmp_path, row) == row
    assert again(tmp_path, child) == child


def test_openai_takes_it(tmp_path: Path) -> None:
    calls = '[{"name": "f", "arguments": {"n": 123456789012345678901234567890}}, {"name": "g", "arguments": {}}]'
    turns = (Turn("user", "雨？"), Turn("assistant", "", calls), Turn("tool", "1"), Turn("tool", "2"))
    row = Row(1, (*turns, Turn("assistant", "No.", trained=False), Turn("user", "So?"), Turn("assistant", "Yes.")))
    tooled = replace(row, tools='[{"name": "f", "most": 123456789012345678901234567890}]')
    path = write(tmp_path, "a.jsonl", line(row))
    assert check_upload(path) == (None, 1)
    assert again(tmp_path, row) == row
    assert again(tmp_path, tooled) == tooled
    marked = line(replace(row, parent="0123456789abcdef"), {"source": "shop", "source_row": 3, "made": {"how": "x"}})
    assert check_upload(write(tmp_path, "b.jsonl", marked)) == (None, 1), "but this gateway takes its own marks"
    shown = json.loads(path.read_text())["messages"]
    assert [message.get("tool_call_id") for message in shown[2:4]] == ["call_1", "call_2"]
    assert shown[4]["weight"] == 0


@pytest.mark.parametrize("tools", ["call", "tools"])
def test_half_of_a_character_in_a_call_is_a_finding(tools: str, tmp_path: Path) -> None:
    """JSON in a text hides it from the reader of the file."""
    half = '{"a": "\\ud800"}'
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": half}}]}
    bad = chat(("user", "Hi"))
    if tools == "call":
        bad["messages"].append(call)
    else:
        bad = chat(("user", "Hi"), ("assistant", "Yes."), tools=f'[{{"name": "f", "about": {half}}}]')
    report = check(open_data(write(tmp_path, "a.jsonl", lines(bad, chat(("user", "Hi"), ("assistant", "Yes."))))))
    assert report.counts["bad_tools"] == 1
    assert report.rows_kept == 1
