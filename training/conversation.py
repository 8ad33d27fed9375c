"""One row as a conversation: in OpenAI's form, as an engine is asked, and in LLaMA-Factory's, as it is trained.

Must not know files or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class TurnLike(Protocol):
    """What is read of a turn of training/data/row.py."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def calls(self) -> str | None: ...


class RowLike(Protocol):
    @property
    def turns(self) -> Sequence[TurnLike]: ...
    @property
    def tools(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: as /v1/chat/completions takes them, the last being the answer that is trained."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] | None = None

    @property
    def asked(self) -> list[Mapping[str, Any]]:
        """What comes before the answer."""
        return list(self.messages[:-1])


def of_row(row: RowLike, system: str | None = None) -> Conversation:
    """The conversation of a row; `system`: a message put in front where the row has none."""
    messages: list[dict[str, Any]] = []
    pending: list[str] = []
    for turn in row.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls is not None:
            calls = [_call(each, f"call_{len(messages)}_{at}") for at, each in enumerate(_listed(turn.calls))]
            message |= {"content": turn.content or None, "tool_calls": calls}
            pending = [call["id"] for call in calls]
        elif turn.role == "tool":
            message["tool_call_id"] = pending.pop(0) if pending else "call_0_0"
        messages.append(message)
    if system is not None and messages[:1] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    tools = tuple(_listed(row.tools)) if row.tools else None
    return Conversation(tuple(messages), tools or None)


def for_trainer(conversation: Conversation) -> dict[str, Any]:
    """What LLaMA-Factory's converter makes of it: the system message apart, calls and results under its own roles."""
    system = ""
    messages: list[dict[str, str]] = []
    for message in conversation.messages:
        if message["role"] in ("system", "developer") and not messages:
            system = str(message["content"])
        elif message.get("tool_calls"):
            calls = [each["function"] for each in message["tool_calls"]]
            told = [{"name": each["name"], "arguments": json.loads(each["arguments"])} for each in calls]
            messages.append({"role": "function", "content": json.dumps(told, ensure_ascii=False)})
        else:
            role = "observation" if message["role"] == "tool" else str(message["role"])
            messages.append({"role": role, "content": str(message["content"])})
    tools = [each.get("function", each) for each in conversation.tools or ()]
    return {"system": system, "messages": messages, "tools": json.dumps(tools, ensure_ascii=False) if tools else ""}


def _listed(text: str) -> list[dict[str, Any]]:
    found = json.loads(text)
    return found if isinstance(found, list) else [found]


def _call(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One tool call in OpenAI's form, from that or from a plain {name, arguments}."""
    function = given.get("function", given)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": given.get("id", name), "type": "function", "function": {"name": function["name"], "arguments": text}}
