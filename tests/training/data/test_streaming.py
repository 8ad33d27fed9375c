"""Files are read as streams: what is held in memory does not grow with the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.reading import open_data
from training.data.row import Row
from training.data.writing import write

ROWS, LONG = 5_000, "Water from clouds. " * 300  # 28 MB
MOST = 9 << 20


def _jsonl(path: Path, record: dict[str, str]) -> None:
    line = json.dumps(record) + "\n"
    with path.open("w") as file:
        file.writelines(line for _ in range(ROWS))


def _json(path: Path, record: dict[str, str]) -> None:
    text = json.dumps(record, indent=1)
    with path.open("w") as file:
        file.write("[")
        file.writelines(f"{text},\n" for _ in range(ROWS - 1))
        file.write(text + "]")


def _csv(path: Path, record: dict[str, str]) -> None:
    with path.open("w") as file:
        file.write("question,answer\n")
        file.writelines(f'{record["question"]},"{record["answer"]}"\n' for _ in range(ROWS))


@pytest.mark.parametrize(("name", "fill"), [("a.jsonl", _jsonl), ("a.json", _json), ("a.csv", _csv)])
def test_reading_and_writing_hold_a_few_megabytes(
    name: str, fill: Callable[[Path, dict[str, str]], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    fill(path, {"question": "What is rain?", "answer": LONG})
    assert path.stat().st_size > 3 * MOST
    tracemalloc.start()
    try:
        rows = (row for row in open_data(path).rows() if isinstance(row, Row))
        assert write(rows, tmp_path / "out", "train").rows == ROWS
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST
