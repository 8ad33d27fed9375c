"""Rows as files that LLaMA-Factory trains on, by way of its `sharegpt` form, and that reading.py reads again.

Never `formatting: openai`: LLaMA-Factory 0.9.5 adds "detailed thinking off" to every system prompt there. Must not know
where rows come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from training.data.row import ASSISTANT, TOOL, Row, Turn
from training.data.turns import turns_of, written
from training.errors import DataRejected

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
# Between the results of several tools in one turn: Qwen's marks, which LLaMA-Factory's own converter uses for all.
BETWEEN_RESULTS = "\n</tool_response>\n<tool_response>\n"
# The trainer's JSON reader takes a column of such texts for times, and then stops.
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?")


@dataclass(frozen=True, slots=True)
class Written:
    """One file of rows. entry: its description in dataset_info.json; digest: sha256 of the file.

    mask_history: only the last answer of each row is to be learned.
    """

    file: Path
    entry: dict[str, Any]
    rows: int
    digest: str
    mask_history: bool


def write(rows: Iterable[Row], folder: Path, name: str, *, mask_history: bool = False) -> Written:
    """Write good rows of one kind to folder/name.jsonl, in one pass. DataRejected where they are of several kinds.

    Where any answer has weight 0, each answer to learn becomes a row that ends with it: the trainer knows no weights.
    mask_history: so in any case, for the second file of a run whose first one is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, scratch = folder / f"{name}.jsonl", folder / f".{name}.jsonl.new"
    try:
        with scratch.open("w+b") as file:
            kind, count, weighted = _fill(rows, file, mask_history)
            file.flush()
            os.fsync(file.fileno())
        with scratch.open("rb") as made:
            digest = hashlib.file_digest(made, "sha256").hexdigest()
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return Written(target, entry(target.name, kind), count, digest, weighted)


def entry(file_name: str, kind: str) -> dict[str, Any]:
    """The description of such a file for dataset_info.json. kind: sft, preference or kto."""
    columns = {"messages": "messages", "tools": "tools"}
    described: dict[str, Any] = {"file_name": file_name, "formatting": "sharegpt"}
    if kind == "preference":
        described["ranking"] = True
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    elif kind == "kto":
        columns |= {"kto_tag": "label"}
    return {**described, "columns": columns, "tags": dict(TAGS)}


def line(row: Row) -> bytes:
    """One row as one line of JSON, each row of a kind with the same fields, whatever it has."""
    shown: dict[str, Any] = {"messages": _messages(row.turns if row.rejected is None else row.turns[:-1])}
    if row.rejected is not None:
        shown |= {"chosen": _message(row.turns[-1]), "rejected": _message(row.rejected)}
    if row.label is not None:
        shown["label"] = row.label
    return orjson.dumps({**shown, "tools": row.tools or "", "parent": row.parent or ""}) + b"\n"


def by_answer(row: Row) -> Iterator[Row]:
    """One row for each answer to learn, with everything before it."""
    for place, turn in enumerate(row.turns, 1):
        if turn.role == ASSISTANT and turn.trained:
            yield replace(row, turns=tuple(replace(each, trained=True) for each in row.turns[:place]))


def _fill(rows: Iterable[Row], file: BinaryIO, weighted: bool) -> tuple[str, int, bool]:
    """Write all rows; their kind, how many, and whether each is one answer."""
    kinds: set[str] = set()
    times = _Times()
    count = 0
    for row in rows:
        kinds.add("preference" if row.rejected is not None else "kto" if row.label is not None else "sft")
        if len(kinds) > 1:
            raise DataRejected(f"Row {row.number} is {kinds.pop()} and earlier rows are {kinds.pop()}: split them.")
        times.see(row)
        if not weighted and not all(turn.trained for turn in row.turns) and kinds == {"sft"}:
            weighted, count = True, _again_by_answer(file)
        for each in by_answer(row) if weighted and kinds == {"sft"} else (row,):
            file.write(line(each))
            count += 1
    if not count:
        raise DataRejected("There is no row to write: none is left, or the share held out is too small for so few.")
    times.refuse()
    return kinds.pop(), count, weighted


def _again_by_answer(file: BinaryIO) -> int:
    """Write the rows that are there anew, one for each answer; how many they are now."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    count = 0
    with Path(file.name).with_suffix(".answers").open("w+b") as other:
        Path(other.name).unlink()  # gone when it is closed
        while file.tell() < end:
            kept = orjson.loads(file.readline())
            row = Row(0, turns_of(kept["messages"]), kept["tools"] or None, parent=kept["parent"] or None)
            for each in by_answer(row):
                other.write(line(each))
                count += 1
        file.seek(0)
        file.truncate()
        other.seek(0)
        while chunk := other.read(1 << 20):
            file.write(chunk)
    return count


class _Times:
    """Whether every text of a column looks like a time."""

    def __init__(self) -> None:
        self._only: dict[str, bool] = {}

    def see(self, row: Row) -> None:
        texts = {"message": [turn.content for turn in row.turns[: -1 if row.rejected is not None else None]]}
        if row.rejected is not None:
            texts |= {"preferred answer": [row.turns[-1].content], "rejected answer": [row.rejected.content]}
        for column, values in texts.items():
            if self._only.get(column, True):
                self._only[column] = all(_TIME.fullmatch(text) for text in values)

    def refuse(self) -> None:
        column = next((column for column, only in self._only.items() if only), None)
        if column is not None:
            raise DataRejected(
                f"Every {column} is a date or a time and nothing else, which the trainer's reader takes for numbers. "
                "Write at least one of them in words."
            )


def _messages(turns: tuple[Turn, ...]) -> list[dict[str, str]]:
    """The turns as the trainer takes them: results of tools that stand side by side are one."""
    shown: list[dict[str, str]] = []
    for place, turn in enumerate(turns):
        if turn.role == TOOL and place and turns[place - 1].role == TOOL:
            shown[-1]["content"] += BETWEEN_RESULTS + turn.content
        else:
            shown.append(_message(turn))
    return shown


def _message(turn: Turn) -> dict[str, str]:
    role, content = written(turn)
    return {"role": role, "content": content}


def write_info(folder: Path, entries: dict[str, dict[str, Any]]) -> Path:
    """dataset_info.json, which names the files of a folder to the trainer; what else it names stays.

    In ASCII: the trainer reads it in the local encoding.
    """
    target = folder / "dataset_info.json"
    try:
        before = orjson.loads(target.read_bytes())
    except (OSError, ValueError):
        before = {}
    entries = {**(before if isinstance(before, dict) else {}), **entries}
    target.write_text(json.dumps(entries, indent=2) + "\n", encoding="ascii")
    return target
