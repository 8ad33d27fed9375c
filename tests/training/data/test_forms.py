"""Every form becomes the same rows; columns are guessed, and what was guessed is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.corpus import lines, parquet, write
from training.data.finding import Finding
from training.data.reading import open_data
from training.data.row import Row, Turn
from training.errors import DataRejected

ASKED, ANSWER, WORSE = "What is rain?", "Water from clouds.", "No idea."
TURNS = (Turn("user", ASKED), Turn("assistant", ANSWER))
SAID = {"system": "Be kind."}
WITH_SYSTEM = (Turn("system", "Be kind."), *TURNS)

FORMS: list[tuple[str, dict[str, Any], Row]] = [
    (
        "openai",
        {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]},
        Row(1, TURNS),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}], **SAID},
        Row(1, WITH_SYSTEM),
    ),
    ("alpaca", {"instruction": ASKED, "input": "", "output": ANSWER, **SAID}, Row(1, WITH_SYSTEM)),
    (
        "alpaca",
        {"instruction": "What is", "input": "rain?", "output": ANSWER},
        Row(1, (Turn("user", "What is\nrain?"), TURNS[1])),
    ),
    (
        "alpaca",
        {"instruction": ASKED, "output": ANSWER, "history": [["Hi", "Hello."]]},
        Row(1, (Turn("user", "Hi"), Turn("assistant", "Hello."), *TURNS)),
    ),
    ("qa", {"question": ASKED, "answer": ANSWER}, Row(1, TURNS)),
    ("qa", {"prompt": ASKED, "completion": ANSWER}, Row(1, TURNS)),
    (
        "qa",
        {"prompt": [{"role": "user", "content": ASKED}], "completion": [{"role": "assistant", "content": ANSWER}]},
        Row(1, TURNS),
    ),
    ("qa", {"Input": ASKED, "Output": ANSWER}, Row(1, TURNS)),
    ("qa", {"问题": ASKED, "答案": ANSWER}, Row(1, TURNS)),
    (
        "dpo",
        {"instruction": ASKED, "chosen": ANSWER, "rejected": WORSE},
        Row(1, TURNS, rejected=Turn("assistant", WORSE)),
    ),
    (
        "dpo",
        {
            "conversations": [{"from": "human", "value": ASKED}],
            "chosen": {"from": "gpt", "value": ANSWER},
            "rejected": {"from": "gpt", "value": WORSE},
        },
        Row(1, TURNS, rejected=Turn("assistant", WORSE)),
    ),
    (
        "dpo",
        {
            "chosen": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}],
            "rejected": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": WORSE}],
        },
        Row(1, TURNS, rejected=Turn("assistant", WORSE)),
    ),
    (
        "openai-preference",
        {
            "input": {"messages": [{"role": "user", "content": ASKED}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": ANSWER}],
            "non_preferred_output": [{"role": "assistant", "content": WORSE}],
        },
        Row(1, TURNS, rejected=Turn("assistant", WORSE)),
    ),
    (
        "kto",
        {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}], "label": True},
        Row(1, TURNS, label=True),
    ),
    ("kto", {"prompt": ASKED, "completion": ANSWER, "label": False}, Row(1, TURNS, label=False)),
]


@pytest.mark.parametrize(("form", "record", "row"), FORMS, ids=[f"{form}-{n}" for n, (form, _, _) in enumerate(FORMS)])
def test_a_record_of_each_form_becomes_its_row(form: str, record: dict[str, Any], row: Row, tmp_path: Path) -> None:
    for path in (
        write(tmp_path, "a.jsonl", lines(record)),
        write(tmp_path, "a.json", json.dumps([record], indent=2).encode()),
        parquet(tmp_path / "a.parquet", [record]),
        write(tmp_path, "no-suffix", lines(record)),
    ):
        data = open_data(path)
        assert (data.form, list(data.rows())) == (form, [row]), path.name
        assert set(data.columns.values()) <= set(record)


@pytest.mark.parametrize(
    ("body", "columns"),
    [
        (b"question,answer\nWhat is rain?,Water from clouds.\n", {"instruction": "question", "output": "answer"}),
        (
            b"id\tPrompt\tResponse\n1\tWhat is rain?\tWater from clouds.\n",
            {"instruction": "Prompt", "output": "Response"},
        ),
        (b"q|a\nWhat is rain?|Water from clouds.\n", {"instruction": "q", "output": "a"}),
        (
            b'instruction,output\n"What is rain?","Water from clouds."\n',
            {"instruction": "instruction", "output": "output"},
        ),
    ],
)
def test_columns_of_a_table_are_guessed_and_shown(body: bytes, columns: dict[str, str], tmp_path: Path) -> None:
    data = open_data(write(tmp_path, "a.csv", body))
    assert data.columns == columns
    assert [row.turns for row in data.rows() if isinstance(row, Row)] == [TURNS]
    assert data.unused == (("id",) if b"id" in body[:2] else ())


def test_a_label_that_is_a_category_makes_no_kto(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, "a.csv", b"question,answer,label\na?,b,weather\nc?,d,true\n"))
    assert (data.form, data.unused) == ("qa", ("label",))


def test_given_columns_win_over_the_guess(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"question,answer,better answer\nWhat is rain?,no,Water from clouds.\n")
    data = open_data(path, columns={"output": "better answer"})
    assert [row.turns for row in data.rows() if isinstance(row, Row)] == [TURNS]
    with pytest.raises(DataRejected, match="There is no column 'foo'"):
        open_data(path, columns={"output": "foo"})
    with pytest.raises(DataRejected, match="no column role 'answers'"):
        open_data(path, columns={"answers": "answer"})
    with pytest.raises(DataRejected, match="no form 'chatml'"):
        open_data(path, form="chatml")
    with pytest.raises(DataRejected, match="needs messages"):
        open_data(path, form="openai")


def test_columns_that_appear_late_are_read_or_told(tmp_path: Path) -> None:
    plain = {"question": ASKED, "answer": ANSWER}
    rows = list(open_data(write(tmp_path, "a.jsonl", lines(*[plain] * 60, {**plain, **SAID, "mood": "good"}))).rows())
    assert rows[-1] == Row(61, WITH_SYSTEM)
    assert [row.message for row in rows if isinstance(row, Finding)] == ["Not read: 'mood', first seen in row 61."]


def test_tool_calls_old_and_new_are_read(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    asked = {"role": "user", "content": "Weather in Rome?"}
    new = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]}
    old = {"role": "assistant", "content": None, "function_call": call}
    end = [{"role": "tool", "tool_call_id": "1", "content": "Sunny"}, {"role": "assistant", "content": "Sunny."}]
    path = write(
        tmp_path,
        "a.jsonl",
        lines(
            {"messages": [asked, new, *end], "tools": tools},
            {"messages": [asked, old, *end], "functions": [tools[0]["function"]]},
        ),
    )
    first, second = (row for row in open_data(path).rows())
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.turns == second.turns
    assert first.turns[1] == Turn("assistant", "", '[{"name": "weather", "arguments": {"city": "Rome"}}]')
    assert json.loads(first.tools or "") == tools


def test_parts_of_text_refusals_and_weights_are_read(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "weight": 0},
            {"role": "user", "content": "How do I pick a lock?"},
            {"role": "assistant", "content": None, "refusal": "I will not say.", "weight": 1},
        ]
    }
    (row,) = open_data(write(tmp_path, "a.jsonl", lines(record))).rows()
    assert isinstance(row, Row)
    assert row.turns[0] == Turn("system", "Be kind.")
    assert [turn.trained for turn in row.turns] == [True, True, False, True, True]
    assert row.turns[-1].content == "I will not say."
