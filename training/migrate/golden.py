"""Prompts, and golden rows: what a model was asked and what it answered, one JSON object a line.

A golden row is also a training row in OpenAI's chat form (`messages` ends with the answer), with `golden` beside it.
Must not know who answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import InvalidRequest

_KEPT = ("role", "content", "name", "tool_calls", "tool_call_id")  # of a message; not `weight`, which no chat takes


@dataclass(frozen=True, slots=True)
class Prompt:
    """number: the line of the file. expected: the answer that the file has for it, if any."""

    number: int
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    expected: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Of the words alone: the same question has the same key in any file."""
        text = json.dumps([self.messages, self.tools], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Left:
    """A line that is no prompt, and why."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Golden:
    """One recorded answer."""

    prompt: Prompt
    answer: Mapping[str, Any] = field(repr=False)
    model: str
    finish: str | None = None
    tokens: int = 0


def read_prompts(path: Path, most: int | None = None) -> tuple[tuple[Prompt, ...], tuple[Left, ...]]:
    """What may be asked, each question once; of more than `most` those whose key is smallest, so that the choice does
    not depend on the order of the file. InvalidRequest where there is none.
    """
    found: dict[str, Prompt] = {}
    left: list[Left] = []
    for number, line in _lines(path):
        prompt = _prompt(number, line)
        if isinstance(prompt, Left):
            left.append(prompt)
        elif (first := found.setdefault(prompt.key, prompt)) is not prompt:
            left.append(Left(number, f"asks the same as line {first.number}"))
    if not found:
        why = f" Line {left[0].number}: {left[0].why}." if left else ""
        raise InvalidRequest(f"{path} holds no prompt.{why} Give JSONL with `messages`, as for fine-tuning.")
    chosen = sorted(found.values(), key=lambda prompt: prompt.key)[:most]
    return tuple(sorted(chosen, key=lambda prompt: prompt.number)), tuple(left)


def read_golden(path: Path) -> tuple[Golden, ...]:
    """Recorded answers; InvalidRequest where there are none, or a line is something else."""
    rows = []
    for number, line in _lines(path):
        row = golden_of(number, line)
        if row is None:
            raise InvalidRequest(f"Line {number} of {path} is no golden row. `loragate migrate record` makes them.")
        rows.append(row)
    if not rows:
        raise InvalidRequest(f"{path} holds no golden rows. `loragate migrate record` makes them.")
    return tuple(rows)


def golden_of(number: int, line: str) -> Golden | None:
    """The golden row on a line, or None."""
    prompt = _prompt(number, line)
    row = _loaded(line)
    about = row.get("golden") if row is not None else None
    if isinstance(prompt, Left) or prompt.expected is None or not isinstance(about, Mapping):
        return None
    tokens = about.get("completion_tokens")
    return Golden(
        prompt,
        prompt.expected,
        str(about.get("model")),
        about.get("finish_reason"),
        tokens if isinstance(tokens, int) else 0,
    )


def golden_line(prompt: Prompt, answer: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """One line of a golden file."""
    row: dict[str, Any] = {"messages": [*prompt.messages, {"role": "assistant", **answer}]}
    if prompt.tools:
        row["tools"] = list(prompt.tools)
    return json.dumps(row | {"golden": about}, ensure_ascii=True) + "\n"


def text_of(answer: Mapping[str, Any]) -> str:
    """An answer as one text; of tool calls their names and arguments, so that equal calls are equal texts."""
    calls = answer.get("tool_calls")
    if not calls:
        content = answer.get("content") or ""
        parts = content if isinstance(content, list) else [{"text": content}]
        return "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))
    plain = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        arguments = function.get("arguments") or "{}"
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            arguments = {"not JSON": arguments}
        plain.append({"name": function.get("name"), "arguments": arguments})
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is not UTF-8"
        raise InvalidRequest(f"{path} cannot be read: {why}.") from None


def _loaded(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _prompt(number: int, line: str) -> Prompt | Left:
    row = _loaded(line)
    if row is None:
        return Left(number, "it is no JSON object")
    inner = row.get("input")
    asked: Mapping[str, Any] = inner if isinstance(inner, Mapping) else row  # a preference row
    if isinstance(row.get("prompt"), str) and "messages" not in row:
        asked = {"messages": [{"role": "user", "content": row["prompt"]}]}
    messages, tools = asked.get("messages"), asked.get("tools") or []
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        return Left(number, "it has no `messages`, or one of them has no role")
    if not isinstance(tools, list):
        return Left(number, "its `tools` are no list")
    plain = [{name: m[name] for name in _KEPT if m.get(name) is not None} for m in messages]
    expected = plain.pop() if plain and plain[-1]["role"] == "assistant" else None
    if not any(message["role"] in ("user", "tool") for message in plain) or _is_answer(plain):
        return Left(number, "nothing is asked in it")
    answer = {k: v for k, v in expected.items() if k != "role"} if expected is not None else None
    return Prompt(number, tuple(plain), tuple(tools), answer)


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str)


def _is_answer(messages: Sequence[Mapping[str, Any]]) -> bool:
    return bool(messages[-1]["role"] == "assistant")
