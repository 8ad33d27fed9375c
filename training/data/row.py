"""One training example as all forms of data become it, and the values that tell rows apart.

Must not know files, forms of data, or what a trainer accepts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES = (SYSTEM, USER, ASSISTANT, TOOL)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. calls: the tool calls of an assistant, a JSON list of {"name", "arguments": object}.

    trained: False where the data say that nothing is to be learned from this turn (OpenAI's `weight: 0`).
    """

    role: str
    content: str
    calls: str | None = None
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One example. number: the 1-based line where it begins (CSV, JSONL), else its 1-based place in the file.

    turns: the conversation, a system turn first where there is one, the answer to learn last. tools: a JSON list of
    tool definitions. rejected: the answer that is worse than the last turn. label: whether the last turn is a good
    answer (KTO). parent: `key` of the row that this one was made from.
    """

    number: int
    turns: tuple[Turn, ...]
    tools: str | None = None
    rejected: Turn | None = None
    label: bool | None = None
    parent: str | None = None

    @property
    def system(self) -> str | None:
        return self.turns[0].content if self.turns and self.turns[0].role == SYSTEM else None

    @property
    def question(self) -> str:
        """The text of the last user turn, else nothing."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == USER), "")

    @property
    def answer(self) -> Turn | None:
        """The answer to learn: the last turn, where that is an assistant's."""
        return self.turns[-1] if self.turns and self.turns[-1].role == ASSISTANT else None


def key(row: Row) -> str:
    """16 hex digits of what is asked, whatever the answer: rows with one key stay on one side of a split.

    Rows that were made from another one have that one's key.
    """
    if row.parent:
        return row.parent
    asked = row.turns[:-1] if row.answer is not None else row.turns
    return _digest([_plain(turn) for turn in asked if turn.role != SYSTEM]).hex()


def content_hash(row: Row) -> bytes:
    """16 bytes of everything that is trained on: equal for rows that say the same, wherever they stand."""
    rejected = None if row.rejected is None else _plain(row.rejected)
    return _digest([[_plain(turn) for turn in row.turns], row.tools, rejected, row.label], size=16)


def question_hash(row: Row) -> bytes:
    """8 bytes of everything before the answer, system and tools too: equal where only answers can differ."""
    asked = row.turns[:-1] if row.answer is not None else row.turns
    return _digest([[_plain(turn) for turn in asked], row.tools])


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns as chat templates and OpenAI-like APIs take them, but that arguments of calls are objects."""
    return [
        {"role": turn.role, "content": turn.content}
        if turn.calls is None
        else {
            "role": turn.role,
            "content": turn.content,
            "tool_calls": [{"type": "function", "function": call} for call in json.loads(turn.calls)],
        }
        for turn in turns
    ]


def _plain(turn: Turn) -> list[Any]:
    return [turn.role, turn.content.strip(), turn.calls]


def _digest(value: object, size: int = 8) -> bytes:
    return hashlib.blake2b(orjson.dumps(value), digest_size=size).digest()
