"""The trainer's side of template parity with LLaMA-Factory itself, against the base's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fake_tokens import of_chat
from tests.training.bases import DEMO, demo, recipe, rows
from training import parity
from training.conversation import Conversation
from training.errors import NotServable
from training.plan import settle

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(600)]


async def engine(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> Sequence[int]:
    found = of_chat(str(DEMO / "base"), list(messages), tools, dict(chat_template_kwargs or {}))
    assert found is not None
    return found


def conversations() -> list[Conversation]:
    """One as it is, one with a system message, one of two turns."""
    lines = (DEMO / "data" / "customer-service.jsonl").read_text(encoding="utf-8").splitlines()
    first, second, third = (tuple(json.loads(line)["messages"]) for line in lines[:3])
    return [
        Conversation(first),
        Conversation(({"role": "system", "content": "Be brief."}, *second)),
        Conversation((*third, *first)),
    ]


async def test_the_trainer_makes_the_engines_tokens_and_not_those_of_another_template(
    training_python: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers")
    for change in ({}, {"template": "llama3"}):
        settled = settle(recipe(**change), rows(), demo())
        check = parity.check(
            conversations(), settled, DEMO / "base", training_python, engine, tmp_path / str(len(change))
        )
        if change:
            with pytest.raises(NotServable, match="3 of 3 rows"):
                await check
        else:
            found = await check
            assert (found.rows, found.equal) == (3, True)
            assert found.tokens > 100
