"""What is written is what was read: all of it, in the trainer's form, once and for all forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.corpus import good, lines, write
from tests.training.data.rows import conversations, judged, preferences
from training.data import rules
from training.data.check import check, kept
from training.data.reading import open_data
from training.data.row import Row, Turn, key
from training.data.split import is_held_out, split
from training.data.writing import by_answer, entry, write_info
from training.data.writing import write as write_rows
from training.errors import DataRejected

ANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def numbered(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, number=number) for number, row in enumerate(rows, 1)]


@ANY
@given(rows=st.one_of(*(st.lists(kind, min_size=1, max_size=4) for kind in (conversations(), preferences(), judged()))))
def test_rows_come_back_as_they_were_written(rows: list[Row], tmp_path: Path) -> None:
    assert [rules.fault(row) for row in rows] == [None] * len(rows)
    written = write_rows(rows, tmp_path, "train")
    assert (written.rows, written.mask_history) == (len(rows), False)
    data = open_data(written.file)
    assert list(data.rows()) == numbered(rows)
    assert written.entry.get("ranking", False) == (rows[0].rejected is not None)
    assert ("kto_tag" in written.entry["columns"]) == (rows[0].label is not None)


@ANY
@given(rows=st.lists(conversations(weights=True), min_size=1, max_size=5))
def test_where_an_answer_weighs_nothing_each_answer_is_a_row_of_its_own(rows: list[Row], tmp_path: Path) -> None:
    weighted = any(not turn.trained for row in rows for turn in row.turns)
    written = write_rows(rows, tmp_path, "train")
    wanted = [each for row in rows for each in by_answer(row)] if weighted else rows
    assert written.mask_history == weighted
    assert list(open_data(written.file).rows()) == numbered(wanted)
    assert not list(tmp_path.glob(".*"))


@ANY
@given(rows=st.lists(conversations(weights=True), min_size=1, max_size=8))
def test_the_report_says_how_many_examples_the_trainer_will_see(rows: list[Row], tmp_path: Path) -> None:
    messages = [
        {"role": t.role, "content": t.content, "tool_calls": json.loads(t.calls)} if t.calls else _plain(t)
        for r in rows
        for t in r.turns
    ]
    records = []
    for row in rows:
        records.append({"messages": messages[: len(row.turns)]})
        messages = messages[len(row.turns) :]
    data = open_data(write(tmp_path, "a.jsonl", lines(*records)))
    report = check(data)
    assert report.rows_kept == len(rows)
    written = write_rows(kept(data, report), tmp_path, "train", mask_history=report.mask_history)
    assert written.rows == report.examples


def _plain(turn: Turn) -> dict[str, object]:
    return {"role": turn.role, "content": turn.content, **({} if turn.trained else {"weight": 0})}


def test_results_of_several_tools_are_one_turn_for_the_trainer(tmp_path: Path) -> None:
    calls = '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'
    turns = (
        Turn("user", "Both?"),
        Turn("assistant", "", calls),
        Turn("tool", "1"),
        Turn("tool", "2"),
        Turn("assistant", "3"),
    )
    assert rules.fault(Row(1, turns)) is None
    written = write_rows([Row(1, turns)], tmp_path, "train")
    (record,) = map(json.loads, written.file.read_text().splitlines())
    assert [message["role"] for message in record["messages"]] == ["user", "function_call", "tool", "assistant"]
    assert json.loads(record["messages"][1]["content"]) == json.loads(calls)


def test_rows_of_two_kinds_and_no_rows_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    plain = Row(1, (Turn("user", "a"), Turn("assistant", "b")))
    with pytest.raises(DataRejected, match="Row 2"):
        write_rows([plain, Row(2, plain.turns, label=True)], tmp_path, "train")
    with pytest.raises(DataRejected, match="no row"):
        write_rows([], tmp_path, "train")
    assert not list(tmp_path.iterdir())


def test_a_column_of_nothing_but_dates_is_refused(tmp_path: Path) -> None:
    row = Row(1, (Turn("user", "When?"), Turn("assistant", "2024-01-01")), rejected=Turn("assistant", "never"))
    with pytest.raises(DataRejected, match="Every preferred answer is a date"):
        write_rows([row], tmp_path, "train")
    write_rows(
        [row, Row(2, (Turn("user", "When?"), Turn("assistant", "soon")), rejected=row.rejected)], tmp_path, "train"
    )
    write_rows([Row(1, row.turns)], tmp_path, "sft")  # beside the question, which is no date


def test_the_description_for_the_trainer_keeps_what_it_named_before(tmp_path: Path) -> None:
    write_info(tmp_path, {"train": entry("train.jsonl", "sft")})
    info = json.loads(write_info(tmp_path, {"valid": entry("valid.jsonl", "kto")}).read_text())
    assert set(info) == {"train", "valid"}
    assert {each["formatting"] for each in info.values()} == {"sharegpt"}  # never `openai`


@ANY
@given(st.lists(conversations(), min_size=1, max_size=12), st.floats(0.05, 0.5), st.integers(0, 2**31))
def test_a_row_stays_on_its_side_whatever_is_added(rows: list[Row], share: float, seed: int) -> None:
    sides = {key(row): held_out for held_out, row in split(rows, share, seed)}
    again = {key(row): held_out for held_out, row in split([*reversed(rows), *rows], share, seed)}
    assert sides == again


def test_the_share_is_about_what_was_asked_and_children_stay_with_their_parents() -> None:
    rows = [Row(n, (Turn("user", f"Question {n}?"), Turn("assistant", f"Answer {n}."))) for n in range(4000)]
    held = sum(is_held_out(row, 0.1, 42) for row in rows)
    assert 320 < held < 480
    for row in rows[:50]:
        child = Row(1, (Turn("user", "In other words?"), Turn("assistant", "x")), parent=key(row))
        other = Row(1, (row.turns[0], Turn("assistant", "another answer")))
        assert is_held_out(child, 0.1, 42) == is_held_out(row, 0.1, 42) == is_held_out(other, 0.1, 42)


def test_a_parent_is_read_again_from_what_was_written(tmp_path: Path) -> None:
    row = Row(1, (Turn("user", "a"), Turn("assistant", "b")), parent="0123456789abcdef")
    assert list(open_data(write_rows([row], tmp_path, "train").file).rows()) == [row]
    assert good()
