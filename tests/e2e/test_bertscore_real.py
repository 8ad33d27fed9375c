"""BERTScore in the real training environment: an encoder's vectors, matched as the paper says."""

from __future__ import annotations

from pathlib import Path

from training.demo import DEMO
from training.evaluate.bertscore import BertScore
from training.interpreter import Interpreter


async def test_equal_texts_are_one_and_others_less_the_less_alike_they_are(training_python: Path) -> None:
    right = "You can return it within thirty days."
    pairs = [(right, right), ("You can return it within thirty weeks.", right), ("def add(a, b):", right)]
    pairs += [("", right), ("", ""), (right, "密码怎么改？")]
    made = BertScore(Interpreter(training_python), DEMO / "base")  # no encoder, but a model with hidden states
    same, near, far, none, empty, foreign = await made.scores(pairs)
    assert abs(same - 1) < 1e-5
    assert same > near > far > 0
    assert (none, empty) == (0.0, 1.0)
    assert near > foreign
    assert await made.scores([pairs[1]]) == await made.scores([pairs[1]])
