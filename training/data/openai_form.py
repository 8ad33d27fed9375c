"""Rows as lines in OpenAI's forms, with nothing lost: weights, tool calls, system, parent. reading.py reads them again.

What becomes of files between one command and the next; writing.py makes what the trainer reads. Must not know files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from training.data.row import ASSISTANT, TOOL, Row, Turn


def line(row: Row, marks: Mapping[str, Any] | None = None) -> bytes:
    """One row as one line of JSON. marks: more fields (columns.MARKS), which readers pass over."""
    return orjson.dumps(document(row) | dict(marks or {})) + b"\n"


def document(row: Row) -> dict[str, Any]:
    """Chat; for a row with two answers OpenAI's preference form; with `label` for KTO."""
    tools: dict[str, Any] = {} if row.tools is None else {"tools": _listed(row.tools)}
    parent = {} if row.parent is None else {"parent": row.parent}
    if row.rejected is not None:
        return {
            "input": {"messages": _messages(row.turns[:-1]), **tools},
            "preferred_output": _messages(row.turns[-1:]),
            "non_preferred_output": _messages((row.rejected,)),
            **parent,
        }
    label = {} if row.label is None else {"label": row.label}
    return {"messages": _messages(row.turns), **tools, **label, **parent}


def _listed(tools: str) -> Any:
    """As a list, but for numbers that only a text can hold."""
    found = json.loads(tools)
    try:
        orjson.dumps(found)
    except TypeError:
        return tools
    return found


def _messages(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Ids of calls are counted: the n-th result of tools answers the n-th call before it."""
    shown: list[dict[str, Any]] = []
    place = calls = results = 0
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls is not None:
            asked = json.loads(turn.calls)
            calls, results = place, 0
            message["tool_calls"] = [_call(each, f"call_{place + n}") for n, each in enumerate(asked, 1)]
            place += len(asked)
        elif turn.role == TOOL:
            results += 1
            message["tool_call_id"] = f"call_{calls + results}"
        if turn.role == ASSISTANT and not turn.trained:
            message["weight"] = 0
        shown.append(message)
    return shown


def _call(call: Mapping[str, Any], identity: str) -> dict[str, Any]:
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return {"id": identity, "type": "function", "function": {"name": call["name"], "arguments": arguments}}
