"""One question with its right answer, made from a row of data; and which rows are asked where there are many.

Must not know models, metrics or HTTP.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.row import Row, Turn

ZH, UNSPACED, SPACED = "zh", "unspaced", "spaced"  # which words a text has: the scripts that BLEU must tell apart


@dataclass(frozen=True, slots=True)
class Example:
    """The conversation as it is sent, and the last answer, which is not.

    reference: the right answer as text; of tool calls, their canonical JSON, and then `calls` is true.
    """

    number: int
    messages: tuple[Mapping[str, Any], ...]
    reference: str
    tools: tuple[Mapping[str, Any], ...] = ()
    calls: bool = False

    @property
    def question(self) -> str:
        """The last thing that was said to the model."""
        return str(self.messages[-1]["content"])

    @property
    def script(self) -> str:
        return script_of(self.reference)

    @property
    def key(self) -> str:
        """Of the content alone: the same row has the same key in any file."""
        body = [list(self.messages), list(self.tools), self.reference]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was not compared, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What is asked. rows: how many there were; digest: of the examples in their order."""

    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...]
    rows: int
    left_out: int
    seed: int

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(example.key for example in self.examples).encode()).hexdigest()


def sample(rows: Iterable[Row], *, most: int, seed: int) -> Sample:
    """The examples of `rows`; where there are more than `most`, those whose hash with `seed` is smallest.

    So the choice does not depend on the order of the file, and a row that was chosen stays when others are added.
    """
    examples: list[Example] = []
    skipped: list[Skipped] = []
    seen: dict[str, int] = {}
    for row in rows:
        made = example_of(row)
        if isinstance(made, Skipped):
            skipped.append(made)
        elif (first := seen.setdefault(made.key, made.number)) != made.number:
            skipped.append(Skipped(row.number, f"the same as row {first}"))
        else:
            examples.append(made)
    drawn = sorted(examples, key=lambda each: hashlib.sha256(f"{seed}:{each.key}".encode()).digest())[:most]
    kept = sorted(drawn, key=lambda each: each.number)
    return Sample(tuple(kept), tuple(skipped), len(examples) + len(skipped), len(examples) - len(kept), seed)


def example_of(row: Row) -> Example | Skipped:
    """The question and the right answer of one row, or why it has none."""
    if not row.turns or row.turns[-1].role != "assistant":
        return Skipped(row.number, "it does not end with an answer")
    *before, last = row.turns
    if row.label is False:
        return Skipped(row.number, "its answer is labelled as a bad one")
    if not last.trained:
        return Skipped(row.number, "its last answer is marked as not to be learned")
    if not any(turn.role != "system" for turn in before):
        return Skipped(row.number, "nothing is asked before its answer")
    try:
        calls = _calls(last)
        messages = _messages(before)
        tools = _tools(row.tools)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Skipped(row.number, "its tool calls or tools cannot be read")
    reference = canonical(calls) if calls else last.content
    if not reference.strip():
        return Skipped(row.number, "its answer is empty")
    return Example(row.number, messages, reference, tools, bool(calls))


def canonical(calls: Sequence[Mapping[str, Any]]) -> str:
    """Tool calls as one text: names and arguments only, keys sorted, so that equal calls are equal texts."""
    plain = []
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = {"not JSON": arguments}
        plain.append({"name": function["name"], "arguments": arguments})
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)


def script_of(text: str) -> str:
    """How words are told apart in `text`: Chinese characters, another script without spaces, or spaces."""
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return SPACED
    unspaced = [char for char in letters if is_unspaced(char)]
    if len(unspaced) * 3 < len(letters):
        return SPACED
    return ZH if all(unicodedata.name(char, "").startswith("CJK") for char in unspaced) else UNSPACED


def is_unspaced(char: str) -> bool:
    """Whether `char` is of a script that puts no spaces between words: each such letter counts as a word."""
    return unicodedata.name(char, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"))


def _messages(turns: Sequence[Turn]) -> tuple[Mapping[str, Any], ...]:
    """As `/v1/chat/completions` takes them: ids for calls and their results, which the data need not have."""
    made: list[Mapping[str, Any]] = []
    open_calls: list[str] = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if calls := _calls(turn):
            ids = [f"call_{len(made)}_{at}" for at in range(len(calls))]
            message["tool_calls"] = [_sent(call, id_) for call, id_ in zip(calls, ids, strict=True)]
            open_calls = ids
        if turn.role == "tool":
            message["tool_call_id"] = open_calls.pop(0) if open_calls else "call_0"
        made.append(message)
    return tuple(made)


def _sent(call: Mapping[str, Any], id_: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": id_, "type": "function", "function": {"name": function["name"], "arguments": text}}


def _calls(turn: Turn) -> list[dict[str, Any]]:
    if not turn.calls:
        return []
    found = json.loads(turn.calls)
    return list(found) if isinstance(found, list) else [found]


def _tools(text: str | None) -> tuple[Mapping[str, Any], ...]:
    if not text:
        return ()
    found = json.loads(text)
    return tuple(each if "function" in each else {"type": "function", "function": each} for each in found)
