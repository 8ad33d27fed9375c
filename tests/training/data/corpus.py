"""Hostile files: what each holds, and which findings (kind, row) a check of it must make. Built here, byte by byte."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.extras import need

GOOD = '{"messages":[{"role":"user","content":"What is rain?"},{"role":"assistant","content":"Water from clouds."}]}'


@dataclass(frozen=True)
class Case:
    """One file. errors: the (kind, row) of every row that must be left out; kept: how many rows stay."""

    name: str
    body: bytes
    errors: tuple[tuple[str, int], ...]
    kept: int


def chat(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """One OpenAI chat row."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def lines(*rows: object) -> bytes:
    """JSONL; text is a line as it is."""
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
    ).encode()


def good(number: int = 0) -> dict[str, Any]:
    return chat(
        ("user", f"Question {number} about rain and wind?"), ("assistant", f"Answer {number}: water from clouds.")
    )


TWELVE = lines(
    good(1),
    '{"messages": [{"role": "user", "content": "Hi"}',
    "[1, 2, 3]",
    chat(("user", "Hi"), ("robot", "Hello")),
    chat(("user", "Hi")),
    chat(("user", "Hi"), ("assistant", "")),
    chat(("user", "Hi"), ("user", "Are you there?"), ("assistant", "Yes.")),
    chat(("user", "Hi"), ("system", "Be kind."), ("assistant", "Hello.")),
    chat(("user", [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]), ("assistant", "A cat.")),
    {"messages": "Hi there"},
    {"messages": []},
    {"text": "Once upon a time"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "weight": 0}]},
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
        ]
    },
    good(2),
)

CASES = (
    Case(
        "twelve_kinds.jsonl",
        TWELVE,
        (
            ("broken_json", 2),
            ("not_an_object", 3),
            ("wrong_role", 4),
            ("no_answer", 5),
            ("empty", 6),
            ("not_alternating", 7),
            ("system_not_first", 8),
            ("not_text", 9),
            ("wrong_form", 10),
            ("empty", 11),
            ("wrong_form", 12),
            ("nothing_trained", 13),
            ("bad_tools", 14),
        ),
        2,
    ),
    Case(
        "latin.jsonl",
        lines(good(1)) + '{"messages": "Grüße"}\n'.encode("cp1252") + lines(good(2)),
        (("encoding", 2),),
        2,
    ),
    Case(
        "half_character.jsonl",
        lines(good(1)) + GOOD.replace("rain", "\\ud800").encode() + b"\n",
        (("broken_json", 2),),
        1,
    ),
    Case("not_a_number.jsonl", lines(good(1), '{"messages": NaN}'), (("broken_json", 2),), 1),
    Case("deep.jsonl", lines(good(1), '{"messages":' + "[" * 5000 + "]" * 5000 + "}"), (("broken_json", 2),), 1),
    Case(
        "long_line.jsonl",
        lines(good(1)) + b'{"messages": "' + b"x" * (17 << 20) + b'"}\n' + lines(good(2)),
        (("too_large", 2),),
        2,
    ),
    Case("blank_lines.jsonl", b"\n\n" + lines(good(1)) + b"  \n" + lines(good(2)), (), 2),
    Case("no_end.jsonl", lines(good(1)) + json.dumps(good(2)).encode(), (), 2),
    Case("windows.jsonl", lines(good(1), good(2)).replace(b"\n", b"\r\n"), (), 2),
    Case("bom.jsonl", b"\xef\xbb\xbf" + lines(good(1), good(2)), (), 2),
    Case("wide.jsonl", lines(good(1), good(2)).decode().encode("utf-16"), (), 2),
    Case(
        "array.json",
        json.dumps([good(1), 7, good(2), "x"], indent=1).encode(),
        (("not_an_object", 2), ("not_an_object", 4)),
        2,
    ),
    Case("array_cut.json", json.dumps([good(1), good(2)]).encode()[:-30], (("cut_off", 2),), 1),
    Case("array_open.json", json.dumps([good(1), good(2)]).encode()[:-1], (("cut_off", 3),), 2),
    Case("array_more.json", json.dumps([good(1)]).encode() + b" {}", (("cut_off", 2),), 1),
    Case("array_brackets.json", b"[" + json.dumps(good(1)).encode() + b", }]", (("cut_off", 2),), 1),
    Case(
        "objects.json", json.dumps(good(1), indent=2).encode() + b"\n" + json.dumps(good(2), indent=2).encode(), (), 2
    ),
    Case("lines.json", lines(good(1), good(2)), (), 2),
    Case(
        "ragged.csv",
        b"question,answer\nWhat is it?,Water\nonly one\na,b,c\nWhat is snow?,Ice\n",
        (("wrong_columns", 3), ("wrong_columns", 4)),
        2,
    ),
    Case("quote_open.csv", b'question,answer\nWhat is it?,Water\nWhy?,"never closed\n', (("cut_off", 3),), 1),
    Case("quote_inside.csv", b'question,answer\nWhat is it?,"Water"s\nWhy?,Because\n', (("wrong_columns", 2),), 1),
    Case("latin.csv", "question,answer\nGrüße?,Hallo\nWhy?,Because\n".encode("cp1252"), (("encoding", 2),), 1),
    Case(
        "many_lines.csv", b'question,answer\n"What\nis\nit?",Water\n,nothing\nWhy?,\n', (("empty", 5), ("empty", 6)), 1
    ),
    Case("semicolons.csv", b"\xef\xbb\xbfQuestion;Answer\r\nWhat is it?;Water, cold\r\n", (), 1),
    Case("wide.csv", "问题,答案\n什么是雨？,云里的水。\n".encode("utf-16"), (), 1),
)


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a Parquet file."""
    made = io.BytesIO()
    need("pyarrow.parquet").write_table(need("pyarrow").Table.from_pylist(rows), made)
    path.write_bytes(made.getvalue())
    return path


def write(folder: Path, name: str, body: bytes) -> Path:
    path = folder / name
    path.write_bytes(body)
    return path
