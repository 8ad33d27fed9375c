"""What the adapter room reads in a lineage, whatever somebody wrote there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.lineage import thinking, utterances


@pytest.mark.parametrize("said", [True, False])
def test_whether_it_was_trained_with_thinking(said: bool) -> None:
    assert thinking(json.dumps({"chat_template_kwargs": {"enable_thinking": said}})) is said


@pytest.mark.parametrize(
    "made",
    [
        None,
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"chat_template_kwargs": null}',
        '{"chat_template_kwargs": ["enable_thinking"]}',
        '{"chat_template_kwargs": {"enable_thinking": "no"}}',
        '{"chat_template_kwargs": {"other": true}}',
    ],
)
def test_what_is_not_said_says_nothing(made: str | None) -> None:
    assert thinking(made) is None
    assert utterances(made) is None


def test_the_trainers_utterances() -> None:
    proof: Any = [{"prompt": "x", "said": "y"}]
    assert json.loads(utterances(json.dumps({"proof": proof})) or "") == proof
