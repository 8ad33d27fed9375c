"""OpenAI's own rules for a file of purpose `fine-tune`, with OpenAI's error texts: JSONL of chat or preference rows.

Needs nothing but the standard library and orjson: the gateway calls it. What can be trained on is check.py's matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from training.data.columns import MARKS

MAX_LINE = 16 << 20
_CHAT = {"messages", "tools", "functions", "parallel_tool_calls"}
_PREFERENCE = {"input", "preferred_output", "non_preferred_output"}
_MESSAGE = {"role", "content", "name", "weight", "refusal", "tool_calls", "tool_call_id", "function_call", "audio"}
_OURS = {"parent", *MARKS}  # what `datasets mix` and `augment` write beside a row, which OpenAI would refuse
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def check_upload(path: Path) -> tuple[str | None, int]:
    """The first thing that OpenAI would refuse the file for, None for nothing; and how many examples it has."""
    examples = 0
    kinds: set[str] = set()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                if not line.strip():
                    continue
                problem = _line(line, number, kinds)
                if problem is not None:
                    return problem, examples
                examples += 1
    except OSError as exc:
        return f"The file cannot be read: {exc.strerror or exc}. Upload it again.", examples
    if not examples:
        return "Invalid file format. The file has no examples: write one JSON object a line.", 0
    return None, examples


def _line(line: bytes, number: int, kinds: set[str]) -> str | None:
    if len(line) > MAX_LINE:
        return f"Invalid file format. Example {number} is longer than 16 MiB."
    if number == 1 and line.startswith(b"\xef\xbb\xbf"):
        line = line[3:]  # a byte order mark
    try:
        value = orjson.loads(line)
    except ValueError:
        return _not_json(line, number)
    if not isinstance(value, dict):
        return _no_dictionary(line, number)
    kind = "preference" if value.keys() & _PREFERENCE else "chat"
    kinds.add(kind)
    if len(kinds) > 1:
        return f"Invalid file format. Example {number} is a {kind} example, and earlier ones are not."
    value = {name: inner for name, inner in value.items() if name not in _OURS}
    problem = _preference(value) if kind == "preference" else _chat(value, _CHAT)
    return None if problem is None else f"Invalid file format. Example {number}{problem}"


def _not_json(line: bytes, number: int) -> str:
    if not line.lstrip().startswith(b"{"):
        return _no_dictionary(line, number)
    try:
        json.loads(line.decode())
    except UnicodeDecodeError:
        return f"Invalid file format. Example {number} cannot be parsed. Error: line is not UTF-8 (line {number})"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as exc:
        reason = str(exc)
    else:
        reason = "a number or a character that JSON does not have"
    parsed = f"Example {number} cannot be parsed. Error: line contains invalid json: {reason} (line {number})"
    return f"Invalid file format. {parsed}"


def _no_dictionary(line: bytes, number: int) -> str:
    start = "".join(char if char.isprintable() else "?" for char in line[:3].decode("ascii", "replace"))
    return (
        "Expected file to have JSONL format, where every line is a valid JSON dictionary. "
        f'Line {number} is not a dictionary (HINT: line starts with: "{start}...").'
    )


def _chat(value: Mapping[str, Any], allowed: set[str], *, answered: bool = True) -> str | None:
    """What is wrong with an example, said after `Example N`."""
    if "messages" not in value:
        return ' is missing key "messages".'
    extra = sorted(value.keys() - allowed)
    if extra:
        return f' contains an extra "{extra[0][:40]}".'
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        return ' has no "messages": a list with at least one message is needed.'
    for place, message in enumerate(messages, 1):
        problem = _message(message)
        if problem is not None:
            return f", message {place} {problem}"
    for name in ("tools", "functions"):
        if value.get(name) is not None and not isinstance(value[name], list):
            return f', "{name}" is not a list.'
    if answered:
        return _answered(messages)
    return None


def _answered(messages: list[Mapping[str, Any]]) -> str | None:
    if messages[-1]["role"] != "assistant":
        return ", the last message must be from the assistant."
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    return None if any(weights) else ' has no assistant message with a "weight" other than 0.'


def _message(message: object) -> str | None:
    if not isinstance(message, dict):
        return "is not a dictionary."
    if "role" not in message:
        return "Discriminator 'role' is missing in value"
    role = message["role"]
    if role not in _ROLES:
        return f"has the role {str(role)[:40]!r}, which is none of {', '.join(_ROLES)}."
    extra = sorted(message.keys() - _MESSAGE)
    if extra:
        return f'contains an extra "{extra[0][:40]}".'
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1, None)):
        return 'has a "weight" that is not 0 or 1 of an assistant.'
    return _content(message, role)


def _content(message: Mapping[str, Any], role: str) -> str | None:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        return 'has "tool_calls" that are not a list.'
    content = message.get("content")
    if content is None:
        spoken = role == "assistant" and (calls or message.get("function_call") or message.get("refusal"))
        return None if spoken else 'is missing key "content".'
    if not isinstance(content, str | list):
        return 'has a "content" that is neither text nor a list of parts.'
    return None


def _preference(value: Mapping[str, Any]) -> str | None:
    for name in sorted(_PREFERENCE):
        if name not in value:
            return f' is missing key "{name}".'
    extra = sorted(value.keys() - _PREFERENCE)
    if extra:
        return f' contains an extra "{extra[0][:40]}".'
    asked = value["input"]
    if not isinstance(asked, dict):
        return ', "input" is not a dictionary.'
    problem = _chat(asked, _CHAT, answered=False)
    if problem is not None:
        return f', "input"{problem}'
    for name in ("preferred_output", "non_preferred_output"):
        outputs = value[name]
        if not isinstance(outputs, list) or len(outputs) != 1:
            return f', "{name}" must be a list of one assistant message.'
        problem = _message(outputs[0])
        if problem is not None:
            return f', "{name}" {problem}'
        if outputs[0]["role"] != "assistant":
            return f', "{name}" must be from the assistant.'
    return None
