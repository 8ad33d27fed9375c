"""A file of training data, looked at row by row: what is wrong with it, how long it is, what is in it twice.

One pass in bounded memory. An error leaves its row out; a warning does so only where `drop` names it. Must not know how
findings are shown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from training.data import rules
from training.data.duplicates import Exact, Near
from training.data.finding import KINDS, Finding, found
from training.data.languages import Languages
from training.data.lengths import Lengths
from training.data.privacy import personal, secrets
from training.data.reading import Data
from training.data.records import OnBytes
from training.data.report import Dropped, Report, Tokens
from training.data.row import ASSISTANT, Row, content_hash, question_hash
from training.data.tokens import TemplateRefused, Tokenizer
from training.errors import DataRejected

KEPT = 100  # findings of each kind in a report
BATCH = 256  # rows whose tokens are counted together
FEW = 10
_AGAIN = {
    "duplicate": "The same as row {}.",
    "contradiction": "Asks the same as row {}, and answers otherwise.",
}
OnProgress = Callable[[int, int], None]  # bytes done, bytes in all


def check(
    data: Data,
    *,
    tokens: Tokenizer | None = None,
    cutoff: int | None = None,
    validation: Data | None = None,
    on_progress: OnProgress | None = None,
    drop: Collection[str] = (),
    near_rows: int = 50_000,
) -> Report:
    """Look at every row. DataRejected where `drop` names no warning.

    tokens, cutoff: count tokens, and those that are lost; validation: look for its rows in `data`; drop: kinds of
    warnings whose rows are left out too; near_rows: how many rows are compared for near-duplicates (0: none).
    """
    unknown = [kind for kind in drop if kind not in KINDS or KINDS[kind][0] != "warning"]
    if unknown:
        warnings = ", ".join(kind for kind, (level, _) in KINDS.items() if level == "warning")
        raise DataRejected(f"Rows cannot be left out for {unknown[0]!r}. There are: {warnings}.", param="drop")
    looked = _Look(data.trains, tokens, cutoff, frozenset(drop), near_rows)
    if validation is not None:
        looked.remember(validation)
    size = data.size_bytes
    batch: list[Row] = []
    for item in data.rows(None if on_progress is None else lambda done: on_progress(min(done, size), size)):
        if isinstance(item, Finding):
            looked.refuse(item)
        elif looked.take(item):
            batch.append(item)
            if len(batch) == BATCH:
                looked.count(batch)
                batch = []
    looked.count(batch)
    return looked.report(data)


def kept(data: Data, report: Report, on_bytes: OnBytes | None = None) -> Iterator[Row]:
    """The rows of `data` that its report keeps."""
    for item in data.rows(on_bytes):
        if isinstance(item, Row) and item.number not in report.dropped:
            yield item


class _Look:
    """One check under way."""

    def __init__(
        self, trains: str, tokens: Tokenizer | None, cutoff: int | None, drop: frozenset[str], near_rows: int
    ) -> None:
        self._is_sft = trains == "sft"  # elsewhere one question has many answers
        self._tokens, self._cutoff, self._drop = tokens, cutoff, drop
        self._counts: Counter[str] = Counter()
        self._findings: dict[str, list[Finding]] = {}
        self._dropped = Dropped()
        self._recent: set[int] = set()  # rows left out since the last batch was counted
        self._exact = Exact(at_once=bool({"duplicate", "contradiction"} & drop))
        self._near = Near(most=near_rows) if near_rows else None
        self._held_out: tuple[set[bytes], set[bytes], Near | None] | None = None
        self._languages, self._characters, self._lengths = Languages(), Lengths(), Lengths()
        self.rows_in = self._good = self._turns = self._answers = self._weighted = 0
        self._prompt = self._learned = self._over = self._lost = 0
        self._labels: Counter[bool | None] = Counter()

    def note(self, finding: Finding) -> None:
        """Count it, keep it while there is room, and leave its row out where that follows."""
        self._counts[finding.kind] += 1
        if self._counts[finding.kind] <= KEPT:
            self._findings.setdefault(finding.kind, []).append(finding)
        if finding.row is not None and (finding.level == "error" or finding.kind in self._drop):
            self._dropped.add(finding.row, finding.kind)
            self._recent.add(finding.row)

    def refuse(self, finding: Finding) -> None:
        """A record that is no row."""
        self.rows_in += finding.row is not None
        self.note(finding)

    def remember(self, validation: Data) -> None:
        """The rows that must not be trained on."""
        near = Near(most=self._near.most) if self._near is not None else None
        contents: set[bytes] = set()
        questions: set[bytes] = set()
        for item in validation.rows():
            if isinstance(item, Row):
                contents.add(content_hash(item)[:8])
                questions.add(question_hash(item))
                if near is not None and near.kept < near.most:
                    near.add(item, near.sign(item))
        self._held_out = contents, questions, near

    def take(self, row: Row) -> bool:
        """Look at a row; whether it can be trained on."""
        self.rows_in += 1
        fault = rules.fault(row)
        if fault is not None:
            self.note(fault)
            return False
        self._good += 1
        again = self._exact.add(row)
        if again is not None and (again[0] == "duplicate" or self._is_sft):
            self.note(found(again[0], _AGAIN[again[0]].format(again[1]), row.number))
            if row.number in self._recent:
                return False
        self._languages.add(row)
        self._private(row)
        self._alike(row)
        replaced = rules.placeholder(row)
        if replaced is not None:
            self.note(replaced)
        self._labels[row.label] += 1
        return row.number not in self._recent

    def count(self, batch: list[Row]) -> None:
        """Lengths of rows that can be trained on, and what they add up to if they are kept."""
        counted = self._tokens.count_many(batch) if self._tokens is not None and batch else [None] * len(batch)
        for row, tokens in zip(batch, counted, strict=True):
            if isinstance(tokens, TemplateRefused):
                self.note(found("template", f"The base's chat template refuses it: {tokens}.", row.number))
            elif tokens is not None:
                self._add_tokens(row, *tokens)
            if row.number not in self._recent:
                self._turns += len(row.turns)
                answers = [turn.trained for turn in row.turns if turn.role == ASSISTANT]
                self._answers += sum(answers)
                self._weighted += not all(answers)
                self._characters.add(sum(len(turn.content) + len(turn.calls or "") for turn in row.turns))
        self._recent.clear()

    def _add_tokens(self, row: Row, prompt: int, learned: int) -> None:
        total = prompt + learned
        if self._cutoff is not None and total > self._cutoff:
            over = total - self._cutoff
            message = f"{total:,} tokens: {over:,} are beyond the cutoff of {self._cutoff:,} and will not be read."
            self.note(found("too_long", message, row.number))
            if "too_long" not in self._drop:
                self._over += 1
                self._lost += over
        mark = next((t for t in map(self._control, _texts(row)) if t is not None), None)
        if mark is not None:
            message = f"The text has {mark}, a control token of the base: it would end or begin a turn there."
            self.note(found("control_token", message, row.number))
        if row.number not in self._recent:
            self._prompt += prompt
            self._learned += learned
            self._lengths.add(total)

    def _control(self, text: str) -> str | None:
        return self._tokens.control_token(text) if self._tokens is not None else None

    def _private(self, row: Row) -> None:
        text = "\n".join(_texts(row))
        if names := secrets(text):
            self.note(found("secret", f"It holds what looks like {' and '.join(names)}.", row.number))
        if names := personal(text):
            self.note(found("personal", f"It holds what looks like {' and '.join(names)}.", row.number))

    def _alike(self, row: Row) -> None:
        """Rows that are nearly the same as an earlier one, or (nearly) as one that is held out."""
        held_near = self._held_out[2] if self._held_out is not None else None
        room = self._near is not None and self._near.kept < self._near.most
        signed = self._near.sign(row) if self._near is not None and (room or held_near is not None) else None
        if self._held_out is not None:
            contents, questions, _ = self._held_out
            if content_hash(row)[:8] in contents:
                self.note(found("leaked", "This row is in the validation data as well.", row.number))
            elif question_hash(row) in questions:
                self.note(found("leaked", "The validation data ask the same.", row.number))
            elif held_near is not None and (like := held_near.like(row, signed)) is not None:
                self.note(found("nearly_leaked", f"Nearly the same as row {like} of the validation data.", row.number))
        if self._near is not None and room:
            like = self._near.like(row, signed)
            if like is not None:
                self.note(found("near_duplicate", f"Nearly the same as row {like}.", row.number))
            self._near.add(row, signed)

    def report(self, data: Data) -> Report:
        """What all rows together say."""
        self._repeated()
        self._of_the_whole(data)
        order = {kind: place for place, kind in enumerate(KINDS)}
        findings = tuple(f for kind in sorted(self._findings, key=order.__getitem__) for f in self._findings[kind])
        rows_kept = self.rows_in - len(self._dropped)
        spread = self._lengths.spread()
        return Report(
            name=data.path.name,
            size_bytes=data.size_bytes,
            form=data.form,
            trains=data.trains,
            columns=data.columns,
            unused=data.unused,
            rows_in=self.rows_in,
            rows_kept=rows_kept,
            examples=self._answers if self._weighted else rows_kept,
            counts={kind: self._counts[kind] for kind in sorted(self._counts, key=order.__getitem__)},
            findings=findings,
            digest=_digest(data.path),
            turns=self._turns,
            characters=self._characters.spread(),
            tokens=None
            if spread is None
            else Tokens(self._prompt, self._learned, spread, self._cutoff, self._over, self._lost),
            languages=self._languages.counts(),
            mask_history=bool(self._weighted),
            dropped=self._dropped,
        )

    def _repeated(self) -> None:
        for kind, row, first in self._exact.repeats():
            if kind == "duplicate" or self._is_sft:
                self.note(found(kind, _AGAIN[kind].format(first), row))

    def _of_the_whole(self, data: Data) -> None:
        if data.trains == "kto" and self._good and len(self._labels) == 1:
            self.note(found("one_label", "Every answer has the same label. KTO learns from good and bad ones."))
        if self._weighted:
            message = (
                f"{self._weighted:,} rows have answers of weight 0: each answer to learn becomes a row of its own."
            )
            self.note(found("weighted", message))
        if self._near is not None and self._near.kept >= self._near.most and self._good > self._near.most:
            self.note(found("sampled", f"Near-duplicates were looked for in the first {self._near.most:,} rows."))
        if data.unused:
            self.note(found("unused", f"Not used: {', '.join(data.unused[:12])}."))
        if 0 < self._good < FEW:
            self.note(
                found("few_rows", f"{self._good} good rows. OpenAI asks for 10 at least; 50 to 100 show an effect.")
            )


def _texts(row: Row) -> list[str]:
    texts = [turn.content for turn in row.turns] + [turn.calls for turn in row.turns if turn.calls is not None]
    return texts if row.rejected is None else [*texts, row.rejected.content]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
