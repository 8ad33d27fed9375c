"""What was made, judged: it must be another row, and as good as the one that it was made from.

Must not know models, endpoints or files.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

from training.augment.asking import NotMade
from training.augment.making import BACK_TRANSLATION, MORE, Manner
from training.data.duplicates import Near, shingles
from training.data.languages import language
from training.data.quality import signs
from training.data.row import SYSTEM, USER, Row, Turn

# Why a text is refused → what that means. docs/datasets.md has the same table.
REASONS: dict[str, str] = {
    "endpoint": "the endpoint does not take this one",
    "empty": "the answer is empty",
    "cut_off": "the answer is longer than --max-tokens",
    "not_json": "no question and answer could be read from it",
    "refusal": "the model declines, or speaks of itself",
    "garbled": "characters that no text has",
    "poor": "it has a sign of a bad row that its parent does not have",
    "other_facts": "a number, an address, code or a placeholder of the question is gone, or new",
    "other_length": "it is much longer or shorter than what it says again",
    "other_language": "it is in another language than its parent",
    "same": "it asks the same as its parent, in the same words",
    "like_another": "it asks nearly the same as another row",
}
ALIKE = 0.85
MADE = 1 << 48  # from here on: places of made rows among the rows of the file
# What a question may not lose: its answer, which stays, may speak of it.
_FACTS = re.compile(
    r"https?://[^\s<>\"'。，、]+|[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]{1,64}|\{\{.*?\}\}|<[a-z]+>|`[^`\n]+`|\d+(?:[.,:]\d+)*"
)
_BETWEEN = re.compile(r"[\W_]+")
_WIDE = "\u2e80"


class Judge:
    """near_rows: how many questions are compared for being nearly the same, for 4 kB each; others for the very same."""

    def __init__(self, near_rows: int = 50_000) -> None:
        self._near = Near(threshold=ALIKE, most=near_rows) if near_rows else None
        self._asked: set[bytes] = set()
        self._made = 0

    def remember(self, row: Row, *, made: bool = False) -> None:
        """A row of the file, or one that was made: no other one shall ask like it."""
        self._asked.add(_digest(row))
        if self._near is not None and self._near.kept < self._near.most and not _before(row):
            self._made += made
            asked = _only(row.question, MADE + self._made if made else row.number)
            self._near.add(asked, self._near.sign(asked))

    def refuse(self, made: Row, parent: Row, manner: Manner, text: str) -> None:
        """NotMade where it is no good."""
        for kind, message in self._faults(made, parent, manner):
            raise NotMade(kind, message, text)

    def _faults(self, made: Row, parent: Row, manner: Manner) -> list[tuple[str, str]]:
        asked, said = parent.question, made.question
        for fault in (
            _quality(made, parent),
            _again(asked, said) if manner.how != MORE else None,
            _tongue(asked, said, manner),
            ("same", "It asks the same in the same words.") if alike(asked, said) else None,
        ):
            if fault is not None:
                return [fault]
        return self._another(made)

    def _another(self, made: Row) -> list[tuple[str, str]]:
        if _digest(made) in self._asked:
            return [("like_another", "Another row asks the very same.")]
        if self._near is None or _before(made):
            return []
        asked = _only(made.question, MADE)
        number = self._near.like(asked, self._near.sign(asked), other_question=False)
        if number is None:
            return []
        which = "another row that was made" if number >= MADE else f"row {number}"
        return [("like_another", f"It asks nearly the same as {which}.")]


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same, or nearly: case, spaces and punctuation do not count."""
    if _bare(one) == _bare(other):
        return True
    first, second = set(shingles(one)), set(shingles(other))
    return bool(first) and len(first & second) >= ALIKE * len(first | second)


def _quality(made: Row, parent: Row) -> tuple[str, str] | None:
    had = {sign.name for sign in signs(parent)}
    for sign in signs(made):
        if sign.name not in had:
            kind = sign.name if sign.name in ("refusal", "garbled") else "poor"
            return kind, f"It has a sign of a bad row: {sign.message}."
    # A model that declines does it where the rephrased question should stand.
    said = Row(0, (Turn(USER, parent.question), Turn("assistant", made.question)))
    if any(sign.name == "refusal" for sign in signs(said)) and "refusal" not in had:
        return "refusal", "The model declines, or speaks of itself."
    return None


def _again(asked: str, said: str) -> tuple[str, str] | None:
    """What the same request in other words may not do."""
    room = 40
    if len(said) > 3 * len(asked) + room or len(asked) > 4 * len(said) + room:
        return "other_length", f"It has {len(said):,} characters, and the question {len(asked):,}."
    if _facts(asked) != _facts(said):
        return "other_facts", "A number, an address, code or a placeholder is gone, or new."
    return None


def _tongue(asked: str, said: str, manner: Manner) -> tuple[str, str] | None:
    if _is_wide(asked) != _is_wide(said) and len(_bare(asked)) > 3:
        return "other_language", "It is written in other characters than its parent."
    if manner.how != BACK_TRANSLATION:
        return None
    if language(said) == manner.via != language(asked):
        return "other_language", f"It did not come back from {manner.via}."
    return None


def _facts(text: str) -> Counter[str]:
    """Addresses may end a sentence, whose full stop is none of theirs."""
    return Counter(found.rstrip(".,;:!?)") for found in _FACTS.findall(unicodedata.normalize("NFKC", text)))


def _is_wide(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    return sum(char >= _WIDE for char in letters) * 3 > len(letters)


def _bare(text: str) -> str:
    return _BETWEEN.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _before(row: Row) -> tuple[Turn, ...]:
    """What was said before the last question: `yes, please` asks something else in another conversation."""
    place = max((place for place, turn in enumerate(row.turns) if turn.role == USER), default=0)
    return tuple(turn for turn in row.turns[:place] if turn.role != SYSTEM)


def _digest(row: Row) -> bytes:
    before = [(turn.role, turn.content, turn.calls) for turn in _before(row)]
    return hashlib.blake2b(repr((before, _bare(row.question))).encode("utf-8", "replace"), digest_size=8).digest()


def _only(question: str, number: int) -> Row:
    """A row that is its question alone: rows with one long answer are not alike because of it."""
    return Row(number, (Turn(USER, question),))
