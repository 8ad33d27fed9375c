"""Feedback → rows to train on: OpenAI's chat form, or its form of preferences. Pure; what is left out is counted.

Of several corrections of one question the newest stands. Must not know where feedback comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT, PREFERENCE = "chat", "preference"
FORMS = (CHAT, PREFERENCE)


@dataclass(frozen=True, slots=True)
class Rows:
    """rows: as `loragate datasets check` takes them. seen: all feedback; left_out: reason → how many."""

    rows: tuple[Mapping[str, Any], ...]
    seen: int
    left_out: Mapping[str, int] = field(default_factory=dict)


def rows(items: Iterable[Mapping[str, Any]], *, form: str = CHAT, with_good: bool = False) -> Rows:
    """What can be learned from `items`, oldest first. with_good: answers that were called good count as right."""
    made: dict[str, Mapping[str, Any]] = {}
    left_out: dict[str, int] = {}
    seen = 0
    for item in items:
        seen += 1
        row = _preference(item) if form == PREFERENCE else _chat(item, with_good)
        if isinstance(row, str):
            left_out[row] = left_out.get(row, 0) + 1
            continue
        question = _key(item)
        if made.pop(question, None) is not None:  # and the newest goes to the end
            reason = "an older word on the same question"
            left_out[reason] = left_out.get(reason, 0) + 1
        made[question] = row
    return Rows(tuple(made.values()), seen, left_out)


def _chat(item: Mapping[str, Any], with_good: bool) -> Mapping[str, Any] | str:
    answer = item.get("correction")
    if answer is None:
        if item.get("rating") != "good":
            return "rated bad, and nobody said what is right"
        if not with_good:
            return "rated good (--with-good takes these)"
        answer = item["answer"]
    row: dict[str, Any] = {"messages": [*_messages(item), {"role": "assistant", "content": answer}]}
    return row | _tools(item)


def _preference(item: Mapping[str, Any]) -> Mapping[str, Any] | str:
    answer, correction = item.get("answer") or "", item.get("correction")
    if correction is None:
        return "without a correction"
    if answer.strip() in ("", correction.strip()):
        return "without the answer that was wrong"
    return {
        "input": {"messages": _messages(item), **_tools(item)},
        "preferred_output": [{"role": "assistant", "content": correction}],
        "non_preferred_output": [{"role": "assistant", "content": answer}],
    }


def _messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`developer` is OpenAI's newer word for system; nothing is null."""
    return [
        {name: value for name, value in message.items() if value is not None}
        | ({"role": "system"} if message["role"] == "developer" else {})
        for message in item["messages"]
    ]


def _tools(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": item["tools"]} if item.get("tools") else {}


def _key(item: Mapping[str, Any]) -> str:
    asked = json.dumps([_messages(item), item.get("tools")], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()
