"""Real LLaMA-Factory reads what `training.data` writes: every row, whole, with as many tokens as we counted."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.data.reading import open_data
from training.data.row import Row, Turn
from training.data.tokens import Tokenizer
from training.data.writing import write, write_info
from training.demo import DEMO, child_environment

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(400)]
SCRIPT = Path(__file__).parent.parent / "training" / "data" / "lf_encode.py"
CALL = '[{"name": "track", "arguments": {"note": "</tool_call> & <b>", "order": 7}}]'
ASK, ANSWER = Turn("user", "Where is my order 7?"), Turn("assistant", "On the map.")


def encoded(python: Path, folder: Path, rows: Sequence[Row], stage: str) -> tuple[list[list[int]], list[str]]:
    """[tokens, learned tokens] of every row that the trainer would train on, and its text."""
    written = write(rows, folder, "train")
    write_info(folder, {"train": written.entry})
    words = [str(DEMO / "base"), str(folder), "train", stage, str(int(written.mask_history)), "qwen"]
    environ = child_environment(python, folder, os.environ)
    command = [str(python), "-X", "utf8", str(SCRIPT), *words]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["rows"]) == written.rows
    return answer["rows"], answer["texts"]


def test_supervised_rows_are_read_whole_and_counted_alike(training_python: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.of(DEMO / "base")
    demo = [row for row in open_data(DEMO / "data" / "customer-service.jsonl").rows() if isinstance(row, Row)]
    plain = [
        *demo,
        Row(1, (Turn("system", "Be kind."), ASK, ANSWER, Turn("user", "我的呢？"), Turn("assistant", "在地图上。"))),
    ]
    calls = [
        Row(1, (ASK, Turn("assistant", "", CALL), Turn("tool", "Rome"), ANSWER)),
        Row(1, (ASK, Turn("assistant", "I look.", CALL), Turn("tool", "1"), Turn("tool", "2"), ANSWER)),
    ]
    counted, texts = encoded(training_python, tmp_path, [*plain, *calls], "sft")
    assert [sum(tokenizer.count(row)) for row in plain] == [total for total, _ in counted[: len(plain)]]
    assert [tokenizer.count(row)[1] for row in plain] == [learned for _, learned in counted[: len(plain)]]
    made = '<tool_call>\n{"name": "track", "arguments": {"note": "</tool_call> & <b>", "order": 7}}\n</tool_call>'
    assert made in texts[-2]
    assert f"I look.\n{made}" in texts[-1]


def test_weights_of_zero_are_read_and_not_learned(training_python: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.of(DEMO / "base")
    turns = (ASK, Turn("assistant", "I do not know.", trained=False), Turn("user", "Look again."), ANSWER)
    counted, texts = encoded(training_python, tmp_path, [Row(1, (ASK, ANSWER)), Row(2, turns)], "sft")
    assert counted[1] == [sum(tokenizer.count(Row(2, turns))), tokenizer.count(Row(2, turns))[1]]
    assert "I do not know." in texts[1]


def test_preferences_and_judged_answers_are_read(training_python: Path, tmp_path: Path) -> None:
    pairs = [Row(n, (Turn("user", f"Order {n}?"), ANSWER), rejected=Turn("assistant", "No.")) for n in range(4)]
    judged = [Row(n, (Turn("user", f"Order {n}?"), ANSWER), label=n % 2 == 0) for n in range(4)]
    assert len(encoded(training_python, tmp_path / "dpo", pairs, "dpo")[0]) == 4
    assert len(encoded(training_python, tmp_path / "kto", judged, "kto")[0]) == 4
