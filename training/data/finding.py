"""What can be found in data: one finding, and the list of all kinds with their level and what they mean.

Must not know how anything is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]

# kind → level, in a few words. An error: the row cannot be trained on, and is left out. Order: as reports show them.
KINDS: dict[str, tuple[Level, str]] = {
    "cut_off": ("error", "the file ends in the middle, or cannot be read from here on"),
    "broken_json": ("error", "not valid JSON"),
    "encoding": ("error", "bytes that are not UTF-8"),
    "not_an_object": ("error", "JSON, but not an object"),
    "too_large": ("error", "one record of more than 16 MiB"),
    "wrong_columns": ("error", "fields that do not match the header"),
    "wrong_form": ("error", "fields of the form are missing, or of the wrong type"),
    "wrong_role": ("error", "a role that does not exist"),
    "not_text": ("error", "content that is not text: pictures, audio, numbers, nothing"),
    "bad_tools": ("error", "tools or tool calls that cannot be read"),
    "empty": ("error", "an empty question or answer"),
    "system_not_first": ("error", "a system turn that is not the first"),
    "not_alternating": ("error", "user and assistant do not take turns"),
    "no_answer": ("error", "the last turn is not the assistant's"),
    "nothing_trained": ("error", "no answer to learn: every weight is 0"),
    "same_answers": ("error", "preferred and rejected answer are the same"),
    "template": ("error", "the base's chat template refuses it"),
    "too_long": ("warning", "longer than the cutoff: the rest is not trained on"),
    "duplicate": ("warning", "the same as an earlier row"),
    "near_duplicate": ("warning", "nearly the same as an earlier row"),
    "contradiction": ("warning", "the question of an earlier row with another answer"),
    "leaked": ("warning", "also in the validation data"),
    "nearly_leaked": ("warning", "nearly the same as a row of the validation data"),
    "secret": ("warning", "an API key, a password or a private key"),
    "personal": ("warning", "personal data: an address, a phone number, a card, an account"),
    "control_token": ("warning", "text that is a control token of the base"),
    "placeholder": ("warning", "text that the trainer would replace"),
    "one_label": ("warning", "every answer has the same label"),
    "few_rows": ("warning", "too few rows to learn much from"),
    "weighted": ("info", "answers of weight 0 are read and not learned"),
    "bom": ("info", "a byte order mark, which is passed over"),
    "recoded": ("info", "read as another encoding than UTF-8"),
    "sampled": ("info", "only part of the rows was looked at"),
    "unused": ("info", "columns that are not used"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. kind: a stable word of KINDS; row: the row's number, None where it is about the whole file."""

    level: Level
    kind: str
    message: str
    row: int | None = None


def found(kind: str, message: str, row: int | None = None) -> Finding:
    """A finding of the level that its kind has."""
    return Finding(KINDS[kind][0], kind, message, row)
