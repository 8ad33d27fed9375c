"""The general set that is shipped, and what is said of one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.demo import ADAPTERS, DEMO
from training.errors import DataRejected
from training.evaluate.example import Example, script_of
from training.evaluate.general import load


def test_the_shipped_set_has_both_languages_and_nothing_that_an_adapter_is_taught() -> None:
    pieces = load().pieces
    texts = [piece.reference if isinstance(piece, Example) else piece for piece in pieces]
    assert 30 <= len(pieces) <= 100
    assert len(set(texts)) >= len(texts) - 1
    assert min(sum(script_of(text) == script for text in texts) for script in ("zh", "spaced")) >= 15
    taught = "".join((DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8") for name in ADAPTERS)
    assert [piece.question for piece in pieces if isinstance(piece, Example) and piece.question in taught] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"text": "fine"}\n\n{"words": 1}', "Line 3"),
        ('{"text": "fine"}\nnot JSON', "Line 2"),
        ('{"messages": [{"role": "user", "content": "no answer"}]}', "Line 1"),
        ("[]", "Line 1"),
    ],
)
def test_a_set_that_is_none_is_refused_by_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "general.jsonl"
    file.write_text(text)
    with pytest.raises(DataRejected, match=said):
        load(file)


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="cannot be read"):
        load(tmp_path / "nowhere.jsonl")
