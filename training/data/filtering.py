"""Which rows of a file stay, by limits that somebody set: quality, length, language, repeats, secrets. One pass.

Every row that goes is written down with its number, its content and each reason. Must not know how it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from training.data import rules
from training.data.duplicates import Exact, Near
from training.data.finding import Finding
from training.data.languages import KIN, known, language, words
from training.data.openai_form import line
from training.data.privacy import personal, secrets
from training.data.quality import SIGNS, score, signs
from training.data.reading import Data
from training.data.row import ASSISTANT, Row
from training.data.target import fresh
from training.data.tokens import TemplateRefused, Tokenizer
from training.errors import DataRejected

OnProgress = Callable[[int, int], None]  # bytes done, bytes in all
BATCH = 256  # rows whose tokens are counted together
SHOWN = 3  # rows that are named for each reason
# What may be said to `drop`, apart from the limits.
DROPS = ("duplicate", "near_duplicate", "contradiction", "secret", "personal", "placeholder", "control_token")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a row must be to stay; None and nothing ask for nothing. Lengths: tokens where a tokenizer is given, else
    characters; of an answer: all that is learned of a row. languages: ISO 639-1.
    """

    min_quality: float | None = None
    min_row: int | None = None
    max_row: int | None = None
    min_answer: int | None = None
    max_answer: int | None = None
    ignored: frozenset[str] = frozenset()  # signs that take nothing off
    languages: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()
    near_rows: int = 50_000

    @property
    def counts(self) -> bool:
        """Whether lengths matter."""
        return any(each is not None for each in (self.min_row, self.max_row, self.min_answer, self.max_answer))

    def check(self) -> None:
        """DataRejected where they can hold for no row, or name what there is not."""
        unknown = sorted(self.drop - set(DROPS))
        if unknown:
            there = ", ".join(DROPS)
            raise DataRejected(f"Rows cannot be removed for {unknown[0]!r}. There are: {there}.", param="drop")
        if strange_signs := sorted(self.ignored - SIGNS.keys()):
            there = ", ".join(SIGNS)
            raise DataRejected(f"There is no sign {strange_signs[0]!r}. There are: {there}.", param="ignore")
        if self.languages and (strange := sorted(self.languages - known())):
            raise DataRejected(
                f"No language is called {strange[0]!r}. Write its ISO 639-1 code, such as en or zh.", param="language"
            )
        for what, low, high in (("row", self.min_row, self.max_row), ("answer", self.min_answer, self.max_answer)):
            if low is not None and high is not None and low > high:
                raise DataRejected(f"No {what} is at least {low:,} and at most {high:,} long. Turn the two round.")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a row goes. kind: a stable word; message: what is wrong with this row."""

    kind: str
    message: str


Judged = tuple[Row | Finding, list[Reason]]


@dataclass(slots=True)
class Filtered:
    """What became of a file. reasons: kind → rows (one row may have several); first: kind → a few (row, message)."""

    rows_in: int = 0
    kept: int = 0
    unused: tuple[str, ...] = ()  # columns that are not read, and so not written
    unsure: int = 0  # rows of no language that could be told: they stay
    reasons: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)  # of all rows, kept ones too
    scores: Counter[int] = field(default_factory=Counter)  # tenths → rows
    first: dict[str, list[tuple[int | None, str]]] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        return self.rows_in - self.kept

    def note(self, number: int | None, reasons: list[Reason]) -> None:
        for reason in reasons:
            self.reasons[reason.kind] += 1
            shown = self.first.setdefault(reason.kind, [])
            if len(shown) < SHOWN:
                shown.append((number, reason.message))

    def document(self) -> dict[str, Any]:
        return {
            "rows_in": self.rows_in,
            "rows_kept": self.kept,
            "rows_removed": self.removed,
            "reasons": dict(self.reasons.most_common()),
            "signs": dict(self.signs.most_common()),
            "scores": {f"{tenth / 10:.1f}": self.scores[tenth] for tenth in sorted(self.scores)},
            "language_unsure": self.unsure,
            "unused_columns": list(self.unused),
        }


def filtered(
    data: Data,
    limits: Limits,
    *,
    tokens: Tokenizer | None = None,
    to: Path | None = None,
    removed: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Filtered:
    """Rows within the limits into `to`, the others into `removed`; without these nothing is written. DataRejected where
    the file cannot be read to its end, or no row would be left; then nothing is written either. StorageFull.
    """
    limits.check()
    found, size = Filtered(unused=data.unused), data.size_bytes
    sieve = _Sieve(limits, tokens, found)
    on_bytes = None if on_progress is None else lambda done: on_progress(min(done, size), size)
    with ExitStack() as files:
        keep = files.enter_context(fresh(to)).write if to is not None else _nowhere
        drop = files.enter_context(fresh(removed)).write if removed is not None else _nowhere
        for item, reasons in sieve.judged(data, on_bytes):
            found.rows_in += 1
            if isinstance(item, Row) and not reasons:
                found.kept += 1
                keep(line(item))
            else:
                drop(_removed(item, reasons))
                found.note(item.number if isinstance(item, Row) else item.row, reasons)
        if not found.kept:
            raise DataRejected(f"No row of {data.path.name} would be left{_most(found)}. Set weaker limits.")
    if removed is not None and not found.removed:
        removed.unlink(missing_ok=True)
    return found


def _removed(item: Row | Finding, reasons: list[Reason]) -> bytes:
    why = [{"kind": reason.kind, "message": reason.message} for reason in reasons]
    if isinstance(item, Row):
        return line(item, {"row": item.number, "reasons": why})
    return orjson.dumps({"row": item.row, "reasons": why}) + b"\n"


def _nowhere(_: bytes) -> None:
    """A dry run."""


def _most(found: Filtered) -> str:
    kind = next(iter(found.reasons.most_common(1)), None)
    return "" if kind is None else f": {kind[1]:,} of {found.rows_in:,} go for {kind[0]}"


class _Sieve:
    """One pass under way."""

    def __init__(self, limits: Limits, tokens: Tokenizer | None, found: Filtered) -> None:
        self._limits, self._tokens, self._found = limits, tokens, found
        wants = limits.drop
        self._exact = Exact(at_once=True) if {"duplicate", "contradiction"} & wants else None
        self._near = Near(most=limits.near_rows) if "near_duplicate" in wants and limits.near_rows else None
        self._languages = limits.languages.union(*(KIN.get(name, ()) for name in limits.languages))
        self._is_sft = True

    def judged(self, data: Data, on_bytes: Callable[[int], None] | None) -> Iterator[Judged]:
        """Each record, and why it goes; in the file's order."""
        self._is_sft = data.trains == "sft"
        batch: list[Judged] = []
        for item in data.rows(on_bytes):
            if isinstance(item, Finding):
                if item.kind == "cut_off":
                    raise DataRejected(f"{data.path.name} could not be read to its end; row {item.row}: {item.message}")
                if item.row is None:
                    continue  # about the file
                batch.append((item, [Reason(item.kind, item.message)]))
            else:
                fault = rules.fault(item)
                batch.append((item, [] if fault is None else [Reason(fault.kind, fault.message)]))
            if len(batch) == BATCH:
                yield from self._finished(batch)
                batch = []
        yield from self._finished(batch)

    def _finished(self, batch: list[Judged]) -> list[Judged]:
        good = [(item, reasons) for item, reasons in batch if isinstance(item, Row) and not reasons]
        rows = [row for row, _ in good]
        counted = self._tokens.count_many(rows) if self._tokens is not None and rows else [None] * len(rows)
        for (row, reasons), tokens in zip(good, counted, strict=True):
            if isinstance(tokens, TemplateRefused):
                reasons.append(Reason("template", f"The base's chat template refuses it: {tokens}."))
                continue
            reasons += self._lengths(row, tokens)
            reasons += self._quality(row)
            reasons += self._language(row)
            reasons += self._content(row)
            if not reasons:  # a row that goes is no original of another one
                reasons += self._repeated(row)
        return batch

    def _lengths(self, row: Row, tokens: tuple[int, int] | None) -> Iterator[Reason]:
        limits = self._limits
        if not limits.counts:
            return
        unit = "characters" if tokens is None else "tokens"
        if tokens is None:
            whole = sum(len(turn.content) + len(turn.calls or "") for turn in row.turns)
            answers = [turn for turn in row.turns if turn.role == ASSISTANT and turn.trained]
            answer = sum(len(turn.content) + len(turn.calls or "") for turn in answers)
        else:
            whole, answer = sum(tokens), tokens[1]
        for what, length, low, high in (
            ("row", whole, limits.min_row, limits.max_row),
            ("answer", answer, limits.min_answer, limits.max_answer),
        ):
            if low is not None and length < low:
                yield Reason(f"short_{what}", f"The {what} has {length:,} {unit}; at least {low:,} are asked for.")
            if high is not None and length > high:
                yield Reason(f"long_{what}", f"The {what} has {length:,} {unit}; at most {high:,} may be.")

    def _quality(self, row: Row) -> Iterator[Reason]:
        if self._limits.min_quality is None:
            return
        found = tuple(sign for sign in signs(row) if sign.name not in self._limits.ignored)
        points = score(found)
        self._found.scores[int(points * 10 + 1e-9)] += 1
        self._found.signs.update(sign.name for sign in found)
        if points < self._limits.min_quality:
            named = "; ".join(sign.message for sign in found)
            yield Reason("low_quality", f"Its score is {points:g}, below {self._limits.min_quality:g}: {named}.")

    def _language(self, row: Row) -> Iterator[Reason]:
        if not self._limits.languages:
            return
        named = language(words(row))
        if named == "?":
            self._found.unsure += 1
        elif named not in self._languages:
            wanted = " or ".join(sorted(self._limits.languages))
            yield Reason("other_language", f"It is in {named}, not in {wanted}.")

    def _content(self, row: Row) -> Iterator[Reason]:
        wanted = self._limits.drop
        texts = [turn.content for turn in row.turns] + [turn.calls for turn in row.turns if turn.calls is not None]
        texts += [] if row.rejected is None else [row.rejected.content]
        text = "\n".join(texts)
        if "secret" in wanted and (names := secrets(text)):
            yield Reason("secret", f"It holds what looks like {' and '.join(names)}.")
        if "personal" in wanted and (names := personal(text)):
            yield Reason("personal", f"It holds what looks like {' and '.join(names)}.")
        if "placeholder" in wanted and (replaced := rules.placeholder(row)) is not None:
            yield Reason("placeholder", replaced.message)
        if "control_token" in wanted and self._tokens is not None:
            mark = next((mark for each in texts if (mark := self._tokens.control_token(each)) is not None), None)
            if mark is not None:
                yield Reason("control_token", f"The text has {mark}, a control token of the base.")

    def _repeated(self, row: Row) -> list[Reason]:
        wanted = self._limits.drop
        if self._exact is not None:
            again = self._exact.add(row)
            if again is not None and again[0] in wanted and (again[0] == "duplicate" or self._is_sft):
                how = "The same as" if again[0] == "duplicate" else "Asks the same and answers otherwise than"
                return [Reason(again[0], f"{how} row {again[1]}.")]
        if self._near is None:
            return []
        signed = self._near.sign(row)
        like = self._near.like(row, signed)
        if like is not None:
            return [Reason("near_duplicate", f"Nearly the same as row {like}.")]
        self._near.add(row, signed)
        return []
