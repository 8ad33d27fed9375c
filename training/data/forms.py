"""The forms of training data: which one a file has, and how a record of it becomes a row.

Forms: openai, sharegpt, alpaca, qa (one answer each); openai-preference, dpo (two); kto (one, good or bad). What is
not said is guessed from the first records. Must not know containers (records.py) or what a trainer refuses (rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.data.columns import MARKS, guess, listed
from training.data.finding import Finding, found
from training.data.records import Record
from training.data.row import ASSISTANT, SYSTEM, USER, Row, Turn
from training.data.turns import Fault, loaded, named, text_of, tools_of, turn_of, turns_of
from training.errors import DataRejected

FORMS = ("openai", "sharegpt", "alpaca", "qa", "openai-preference", "dpo", "kto")
Trains = Literal["sft", "preference", "kto"]
_LABELS = {"true": True, "1": True, "yes": True, "good": True, "false": False, "0": False, "no": False, "bad": False}


@dataclass(frozen=True, slots=True)
class Form:
    """What a file's records are. columns: role → column (columns.py); unused: columns that are not read.

    late: roles that no record had from which the form was guessed; a later one may, under the role's own name.
    """

    name: str
    columns: Mapping[str, str]
    unused: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    @property
    def trains(self) -> Trains:
        if self.name in ("dpo", "openai-preference"):
            return "preference"
        return "kto" if self.name == "kto" else "sft"


def settle(names: Sequence[str], head: Sequence[Mapping[str, Any]], given: Mapping[str, str], form: str | None) -> Form:
    """The form of a file with the columns `names` that begins with the records `head`. DataRejected."""
    if form is not None and form not in FORMS:
        raise DataRejected(f"There is no form {form!r}. There are: {', '.join(FORMS)}.", param="form")
    if not given and (form == "openai-preference" or (form is None and _is_openai_preference(names))):
        roles = {"input": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}
        return _form("openai-preference", roles | ({"parent": "parent"} if "parent" in names else {}), names)
    columns = guess(names, given)
    if "label" in columns and form != "kto" and "label" not in given and not _all_labels(columns["label"], head):
        del columns["label"]  # a column of that name that says something else
    name = form or _name(columns, head)
    missing = _missing(name, columns) if name is not None else ()
    if name is None or missing:
        raise DataRejected(_unknown(names, name, missing), param="columns")
    return _form(name, columns, names)


def _form(name: str, columns: Mapping[str, str], names: Sequence[str]) -> Form:
    wanted = {
        "openai": ("messages", "system", "tools"),
        "sharegpt": ("messages", "system", "tools"),
        "dpo": ("messages", "instruction", "input", "system", "history", "tools", "chosen", "rejected"),
        "kto": ("messages", "instruction", "input", "output", "system", "history", "tools", "label"),
        "openai-preference": ("input", "chosen", "rejected"),
    }.get(name, ("instruction", "input", "output", "system", "history", "tools"))
    if "messages" in columns:
        wanted = tuple(role for role in wanted if role not in ("instruction", "input", "output", "history"))
    used = {role: columns[role] for role in (*wanted, "parent") if role in columns}
    unused = tuple(name for name in names if name not in used.values() and name not in MARKS)
    late = {"system", "tools", "history", "input", "parent"} & {*wanted, "parent"} - used.keys() - set(names)
    return Form(name, used, unused, tuple(sorted(late)))


def _is_openai_preference(names: Sequence[str]) -> bool:
    return {"input", "preferred_output", "non_preferred_output"} <= set(names)


def _name(columns: Mapping[str, str], head: Sequence[Mapping[str, Any]]) -> str | None:
    """The form that these columns make; None for none."""
    two = "chosen" in columns and "rejected" in columns
    if two and ("messages" in columns or "instruction" in columns or _are_lists(columns["chosen"], head)):
        return "dpo"
    if "messages" in columns:
        if "label" in columns:
            return "kto"
        return "sharegpt" if _has_from(columns["messages"], head) else "openai"
    if "instruction" not in columns or "output" not in columns:
        return None
    if "label" in columns:
        return "kto"
    is_alpaca = columns["instruction"] == "instruction" and columns["output"] == "output"
    return "alpaca" if is_alpaca or "history" in columns or "input" in columns else "qa"


def _missing(name: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    wanted = {
        "openai": ("messages",),
        "sharegpt": ("messages",),
        "alpaca": ("instruction", "output"),
        "qa": ("instruction", "output"),
        "dpo": ("chosen", "rejected"),
        "kto": ("label",) if "messages" in columns else ("instruction", "output", "label"),
    }.get(name, ())
    return tuple(role for role in wanted if role not in columns)


def _unknown(names: Sequence[str], name: str | None, missing: Sequence[str]) -> str:
    has = f"This file has the columns {listed(names)}"
    if missing:
        return f"{has}, and the form {name} needs {' and '.join(missing)}. Say which column that is."
    return (
        f"{has}, and none that are known as question and answer. Say which they are, for example "
        "--instruction-col QUESTION --output-col ANSWER, or name the form with --form."
    )


def _all_labels(column: str, head: Sequence[Mapping[str, Any]]) -> bool:
    shown = [value for record in head if (value := record.get(column)) not in (None, "")]
    return bool(shown) and all(_label(value) is not None for value in shown)


def _are_lists(column: str, head: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(record.get(column), list) for record in head)


def _has_from(column: str, head: Sequence[Mapping[str, Any]]) -> bool:
    lists = [value for record in head if isinstance(value := record.get(column), list)]
    return any(isinstance(message, Mapping) and "from" in message for value in lists for message in value)


def row_of(form: Form, record: Record) -> Row | Finding:
    """The row that a record is, or why it is none."""
    try:
        fields = {role: record.value.get(column) for role, column in form.columns.items()}
        fields |= {role: record.value[role] for role in form.late if role in record.value}
        if all(value is None or value == "" for role, value in fields.items() if role != "parent"):
            columns = listed(tuple(form.columns.values()), 4)
            kind = "empty" if record.value.keys() & set(form.columns.values()) else "wrong_form"
            raise Fault(kind, f"Nothing stands in {columns}.")
        row = _row(form, record.number, fields)
    except Fault as fault:
        return found(fault.kind, fault.message, record.number)
    return row


def _row(form: Form, number: int, fields: Mapping[str, Any]) -> Row:
    rejected: Turn | None = None
    label: bool | None = None
    if form.name == "openai-preference":
        turns, tools, rejected = _openai_preference(fields)
    else:
        tools = tools_of(fields.get("tools"))
        turns = _asked(form, fields)
        if form.name == "dpo":
            turns, rejected = _two_answers(turns, fields)
        elif form.name == "kto":
            label = _label(fields.get("label"))
            if label is None:
                raise Fault(
                    "wrong_form", f"`{form.columns['label']}` is {named(fields.get('label'))}, not true or false."
                )
        if turns and turns[0].role != SYSTEM and fields.get("system"):
            turns = (Turn(SYSTEM, text_of(fields["system"], "The system column")), *turns)
    parent = fields.get("parent")
    return Row(number, turns, tools, rejected, label, parent if isinstance(parent, str) and parent else None)


def _asked(form: Form, fields: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns before the answers of a preference row; all of them elsewhere."""
    if "messages" in form.columns:
        return turns_of(fields.get("messages"), form.columns["messages"])
    if "instruction" not in form.columns:
        return ()
    if isinstance(fields.get("instruction"), list):
        turns = turns_of(fields["instruction"], form.columns["instruction"])
    else:
        parts = []
        for role in ("instruction", "input"):
            if fields.get(role) not in (None, ""):
                parts.append(text_of(fields[role], f"`{form.columns.get(role, role)}`"))
        turns = (*_history(fields.get("history")), Turn(USER, "\n".join(parts)))
    if form.name == "dpo":
        return turns
    answer = fields.get("output")
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping) and "role" in answer[0]:
        return (*turns, *turns_of(answer, form.columns["output"]))
    return (*turns, Turn(ASSISTANT, text_of("" if answer is None else answer, f"`{form.columns['output']}`")))


def _history(value: object) -> tuple[Turn, ...]:
    """Alpaca's earlier turns: pairs of question and answer."""
    if value in (None, "", []):
        return ()
    if isinstance(value, str):
        value = loaded(value, "wrong_form", "`history` is text that is no JSON list.")
    pairs: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Fault("wrong_form", "`history` is not a list of pairs of question and answer.")
    turns = []
    for question, answer in pairs:
        turns += [Turn(USER, text_of(question, "`history`")), Turn(ASSISTANT, text_of(answer, "`history`"))]
    return tuple(turns)


def _two_answers(asked: tuple[Turn, ...], fields: Mapping[str, Any]) -> tuple[tuple[Turn, ...], Turn]:
    """The conversation with the better answer, and the worse one. Answers may repeat the conversation before them."""
    chosen, better = _answer(fields.get("chosen"), "chosen")
    others, worse = _answer(fields.get("rejected"), "rejected")
    if not asked:
        if [(t.role, t.content) for t in chosen] != [(t.role, t.content) for t in others]:
            raise Fault("wrong_form", "The chosen and the rejected answer stand behind different conversations.")
        asked = chosen
    return (*asked, better), worse


def _answer(value: object, name: str) -> tuple[tuple[Turn, ...], Turn]:
    if isinstance(value, list):
        turns = turns_of(value, name)
        return turns[:-1], turns[-1]
    if isinstance(value, Mapping):
        return (), turn_of(value, f"`{name}`")
    return (), Turn(ASSISTANT, text_of("" if value is None else value, f"`{name}`"))


def _openai_preference(fields: Mapping[str, Any]) -> tuple[tuple[Turn, ...], str | None, Turn]:
    asked = fields.get("input")
    if not isinstance(asked, Mapping):
        raise Fault("wrong_form", f"`input` is {named(asked)}, not an object with messages.")
    turns = turns_of(asked.get("messages"), "input.messages")
    answers = []
    for role, name in (("chosen", "preferred_output"), ("rejected", "non_preferred_output")):
        outputs = turns_of(fields.get(role), name)
        if len(outputs) != 1:
            raise Fault("wrong_form", f"`{name}` has {len(outputs)} messages. It must have one, the assistant's.")
        answers.append(outputs[0])
    return (*turns, answers[0]), tools_of(asked.get("tools")), answers[1]


def _label(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    return _LABELS.get(value.strip().lower()) if isinstance(value, str) else None
