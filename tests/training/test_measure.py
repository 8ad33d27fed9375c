"""The facts of a recipe's data: counted by the base's own tokenizer, with shares, caps and validation taken off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.bases import DEMO, demo, recipe
from training.errors import DataRejected
from training.facts import DataFacts
from training.measure import measure
from training.plan import settle

BASE = DEMO / "base"
ROWS = DEMO / "data" / "customer-service.jsonl"
pytest.importorskip("tokenizers")  # of the extra `train`


def test_lengths_are_enough_for_every_question() -> None:
    data = DataFacts("sft", {10: 5, 20: 4, 100: 1})
    assert (data.rows, data.longest, data.tokens) == (10, 100, 230)
    assert (data.percentile(0.5), data.percentile(0.9), data.percentile(1.0)) == (10, 20, 100)
    assert data.cut_at(15) == (5, 4 * 5 + 85)
    assert data.cut_at(100) == (0, 0)
    assert DataFacts("sft", {}).longest == 0


def test_the_demos_rows_are_counted_as_the_base_sees_them() -> None:
    found = measure(recipe(data={"train": str(ROWS)}), BASE)
    facts = found.facts
    assert (facts.kind, facts.rows, facts.dropped, facts.valid_rows, facts.multi_turn) == ("sft", 24, 0, 0, False)
    assert 60 < min(facts.lengths) < facts.longest < 100
    assert facts.prompt_tokens + facts.answer_tokens == facts.tokens
    assert [each.messages[0]["role"] for each in found.samples] == ["user"] * 3
    assert found.reports[0]["form"]
    assert settle(recipe(data={"train": str(ROWS)}), facts, demo()).rows == 24


def test_a_share_is_kept_aside_and_weights_and_caps_count() -> None:
    held = measure(recipe(data={"train": str(ROWS), "validation": 0.25}), BASE).facts
    assert (held.rows + held.valid_rows, 0 < held.valid_rows < 16) == (24, True)
    twice = measure(recipe(data={"train": [{"file": str(ROWS), "weight": 2}]}), BASE).facts
    half = measure(recipe(data={"train": [{"file": str(ROWS), "weight": 0.5}, {"file": str(ROWS), "cap": 5}]}), BASE)
    assert (twice.rows, half.facts.rows, len(half.reports)) == (48, 12 + 5, 2)
    other = measure(recipe(data={"train": str(ROWS), "validation": str(DEMO / "data" / "financial-qa.jsonl")}), BASE)
    assert (other.facts.rows, other.facts.valid_rows) == (24, 24)


def test_a_system_message_makes_every_row_longer() -> None:
    plain = measure(recipe(data={"train": str(ROWS)}), BASE).facts
    spoken = measure(recipe(data={"train": str(ROWS), "system": "Answer as the company does, briefly."}), BASE)
    assert spoken.facts.rows == plain.rows
    assert spoken.facts.tokens > plain.tokens
    assert spoken.samples[0].messages[0]["role"] == "system"


def test_each_answer_is_a_row_where_the_template_wants_it(tmp_path: Path) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    file = written(tmp_path, [{"messages": [{"role": role, "content": content} for role, content in said]}] * 2)
    whole = measure(recipe(data={"train": file}), BASE).facts
    apart = measure(recipe(data={"train": file}), BASE, by_answer=True)
    assert (whole.rows, whole.multi_turn, whole.mask_history) == (2, True, False)
    assert (apart.facts.rows, apart.facts.mask_history) == (4, True)
    assert [len(each.messages) for each in apart.samples] == [2, 4, 2]


def written(folder: Path, rows: list[Any]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return str(file)


def test_bad_data_is_refused_before_a_plan(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataRejected, match="There is no file"):
        measure(recipe(data={"train": str(tmp_path / "none.jsonl")}), BASE)
    with pytest.raises(DataRejected, match="row 2"):
        measure(recipe(data={"train": written(tmp_path, [good, "{", good])}), BASE)
    some = measure(recipe(data={"train": written(tmp_path, [good, "{", good]), "max_dropped": 0.5}), BASE).facts
    assert (some.rows, some.dropped) == (2, 1)
