"""Which column of a file is what: names that people give to questions and answers, guessed and overruled.

Must not know how a record becomes a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.errors import DataRejected

# What a column can be → names that people give it, the best first; case, spaces, dashes and underscores do not count.
NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"),
    "instruction": (
        *("instruction", "prompt", "question", "query", "user", "ask", "q", "customer", "input text"),
        *("问题", "指令", "提问", "问", "用户"),
    ),
    "input": ("input", "context", "输入", "上下文"),
    "output": (
        *("output", "response", "answer", "completion", "reply", "assistant", "a", "agent", "output text"),
        *("答案", "回答", "输出", "回复", "答"),
    ),
    "chosen": ("chosen", "preferred", "preferred output", "chosen response", "better", "win"),
    "rejected": ("rejected", "non preferred output", "rejected response", "worse", "lose"),
    "label": ("label", "kto tag", "desirable", "thumbs up", "is good"),
    "system": ("system", "system prompt", "系统", "系统提示"),
    "history": ("history", "历史"),
    "tools": ("tools", "functions"),
    "parent": ("parent",),
}

# What this program itself writes beside a row, for people: where it is from, and how it was made.
MARKS = ("source", "source_row", "made")


def guess(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """role → column, for the columns `names`; what is `given` wins. DataRejected where that is not there."""
    for role, column in given.items():
        if role not in NAMES:
            raise DataRejected(f"There is no column role {role!r}. There are: {', '.join(NAMES)}.", param="columns")
        if column not in names:
            raise DataRejected(
                f"There is no column {column!r} in this file. It has: {listed(names)}.",
                param="columns",
            )
    mapping = dict(given)
    plain = {_plain(name): name for name in reversed(names) if name not in given.values()}
    for role, known in NAMES.items():
        if role in mapping:
            continue
        name = next((_plain(name) for name in known if _plain(name) in plain), None)
        if name is not None:
            mapping[role] = plain.pop(name)
    if "instruction" not in mapping and "input" in mapping and ("output" in mapping or "chosen" in mapping):
        mapping["instruction"] = mapping.pop("input")  # a lone `input` is the question
    return mapping


def listed(names: Sequence[str], most: int = 12) -> str:
    """Column names for a sentence."""
    shown = ", ".join(repr(name[:40]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char not in " -_\t")
