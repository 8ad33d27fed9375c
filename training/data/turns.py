"""Messages in every spelling → turns: roles, text in parts, tool calls old and new, weights.

Must not know files or which form a record has. What cannot be a turn is a Fault, which says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from training.data.row import ASSISTANT, SYSTEM, TOOL, USER, Turn

# Every spelling of a role, OpenAI's, ShareGPT's and the trainer's.
ROLE_TAGS = {
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("user", "human"), USER),
    **dict.fromkeys(("assistant", "gpt", "function_call", "model", "chatgpt", "bot"), ASSISTANT),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), TOOL),
}
CALL_WORDS = ("<tool_call>", "</tool_call>")  # LLaMA-Factory's, between text and calls of one turn
_CALLS = re.compile(r"\n?<tool_call>(.*?)</tool_call>", re.DOTALL)


class Fault(ValueError):
    """Why a record is no row. kind: one of finding.KINDS."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def turns_of(value: object, where: str = "messages") -> tuple[Turn, ...]:
    """The turns of a list of messages; Fault."""
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list kept as text, as CSV must
        value = loaded(value, "wrong_form", f"`{where}` is text that is no JSON list.")
    if not isinstance(value, list):
        raise Fault("wrong_form", f"`{where}` is {named(value)}, not a list of messages.")
    if not value:
        raise Fault("empty", f"`{where}` is an empty list.")
    return tuple(turn_of(message, f"Message {place}") for place, message in enumerate(value, 1))


def turn_of(message: object, where: str) -> Turn:
    """One message as a turn; Fault."""
    if not isinstance(message, Mapping):
        raise Fault("wrong_form", f"{where} is {named(message)}, not an object with a role and content.")
    tag = message.get("role", message.get("from"))
    role = ROLE_TAGS.get(tag.strip().lower()) if isinstance(tag, str) else None
    if role is None:
        shown = f"has the role {tag[:40]!r}" if isinstance(tag, str) else "has no role"
        raise Fault("wrong_role", f"{where} {shown}. Roles are system, user, assistant and tool.")
    content = message.get("content", message.get("value"))
    calls = _calls(message, where) if role == ASSISTANT else None
    if tag == "function_call" and calls is None:
        if not isinstance(content, str):
            raise Fault("bad_tools", f"{where} is a call, and its content is {named(content)} instead of JSON.")
        content, calls = _written_calls(content, where)
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if content is None and calls is not None:
        content = ""
    trained = _trained(message, where) if role == ASSISTANT else True
    return Turn(role, text_of(content, where), calls, trained)


def text_of(content: object, where: str) -> str:
    """Text, or parts that are all text; Fault."""
    if isinstance(content, str):
        if not content.isascii():
            try:
                content.encode()
            except UnicodeEncodeError:
                raise Fault("not_text", f"{where} has half of a character in it.") from None
        return content
    if isinstance(content, list) and content:
        texts = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            text = part.get("text") if isinstance(part, Mapping) else None
            if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
                shown = f"a part of the type {kind[:30]!r}" if isinstance(kind, str) else "a part without a type"
                raise Fault("not_text", f"{where} has {shown}. Only text can be trained on here.")
            texts.append(text)
        return "".join(texts)
    hint = " Write it in quotes." if isinstance(content, int | float) else ""
    raise Fault("not_text", f"{where} has {named(content)} for its content, not text.{hint}")


def tools_of(value: object) -> str | None:
    """Tool definitions as a JSON list; None for none; Fault."""
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        value = loaded(value, "bad_tools", "`tools` is text that is no JSON.")
    if not isinstance(value, list):
        raise Fault("bad_tools", f"`tools` is {named(value)}, not a list of tools.")
    for place, tool in enumerate(value, 1):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise Fault("bad_tools", f"Tool {place} has no name. A tool is {{'type': 'function', 'function': {{…}}}}.")
    return _whole(_without_nothing(value), "`tools`") if value else None


def _calls(message: Mapping[str, Any], where: str) -> str | None:
    """`tool_calls`, or the older `function_call`, as the JSON list of Turn.calls."""
    value = message.get("tool_calls")
    if not value and isinstance(message.get("function_call"), Mapping):
        value = [message["function_call"]]
    if not value:
        return None
    if not isinstance(value, list):
        raise Fault("bad_tools", f"{where} has {named(value)} for its tool calls, not a list.")
    return _as_calls(value, where)


def _call(call: object, where: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise Fault("bad_tools", f"{where} has no function name.")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = loaded(arguments or "{}", "bad_tools", f"{where} has arguments that are no JSON.")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise Fault("bad_tools", f"{where} has {named(arguments)} for its arguments, not an object.")
    return {"name": inner["name"], "arguments": dict(arguments)}


def _written_calls(content: str, where: str) -> tuple[str, str]:
    """Text and calls of a turn with the trainer's role `function_call`."""
    inside = _CALLS.search(content)
    text = content.replace(inside.group(0), "", 1) if inside else ""
    value = loaded(inside.group(1) if inside else content, "bad_tools", f"{where} is a call whose content is no JSON.")
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise Fault("bad_tools", f"{where} is a call of nothing.")
    return text, _as_calls(calls, where)


def _as_calls(calls: list[Any], where: str) -> str:
    return _whole([_call(call, f"{where}, call {n},") for n, call in enumerate(calls, 1)], where)


def _whole(value: object, where: str) -> str:
    """As JSON; Fault for half of a character, which arguments that are JSON in a text can hide."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Fault("bad_tools", f"{where} has half of a character in it.") from None
    return text


def written(turn: Turn) -> tuple[str, str]:
    """Role and content of a turn as LLaMA-Factory's `sharegpt` takes them; the reverse of turn_of."""
    if turn.calls is None:
        return turn.role, turn.content
    calls = turn.calls.replace("<", "\\u003c")  # its own marks inside an argument would end the call
    return "function_call", f"{turn.content}\n{CALL_WORDS[0]}{calls}{CALL_WORDS[1]}" if turn.content else calls


def _trained(message: Mapping[str, Any], where: str) -> bool:
    weight = message.get("weight")
    if weight is None:
        return True
    if weight not in (0, 1) or isinstance(weight, str):
        raise Fault("wrong_form", f"{where} has a weight that is neither 0 nor 1.")
    return bool(weight)


def loaded(text: str, kind: str, message: str) -> Any:
    """Parsed JSON, else a Fault with this message. Numbers that are none in JSON are refused as well."""
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise Fault(kind, message) from None


def _refused(constant: str) -> object:
    raise ValueError(constant)


def _without_nothing(value: Any) -> Any:
    """Without keys that are null: tables (Parquet) give every object every key of the others."""
    if isinstance(value, Mapping):
        return {name: _without_nothing(inner) for name, inner in value.items() if inner is not None}
    return [_without_nothing(inner) for inner in value] if isinstance(value, list) else value


def named(value: object) -> str:
    """What a value is, for a sentence."""
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "something that is no text")
