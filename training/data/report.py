"""What was found in a file: every row accounted for, as values, as JSON and as text for people.

Must not know how anything is found.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from training.data.finding import KINDS, Finding
from training.data.lengths import Spread, drawn

SHOWN = 5  # findings of each kind, for people


class Dropped:
    """Which rows are left out, and why: 8 bytes a row."""

    def __init__(self) -> None:
        self._entries, self._ordered = array("Q"), True  # row number x 256 + place of the kind in KINDS
        self._names = tuple(KINDS)

    def add(self, number: int, kind: str) -> None:
        """Leave the row out."""
        self._entries.append(number << 8 | self._names.index(kind))
        self._ordered = False

    def why(self, number: int) -> str | None:
        """The kind of finding that the row is left out for, the gravest; None where it is kept."""
        self._order()
        place = bisect_left(self._entries, number << 8)
        if place == len(self._entries) or self._entries[place] >> 8 != number:
            return None
        return self._names[self._entries[place] & 255]

    def items(self) -> Iterator[tuple[int, str]]:
        """(row, kind) of each, by row."""
        self._order()
        for entry in self._entries:
            yield entry >> 8, self._names[entry & 255]

    def __contains__(self, number: int) -> bool:
        return self.why(number) is not None

    def __len__(self) -> int:
        self._order()
        return len(self._entries)

    def _order(self) -> None:
        """Sort, and keep one reason a row."""
        if not self._ordered:
            last = -1
            once = array("Q")
            for entry in sorted(self._entries):
                if entry >> 8 != last:
                    once.append(entry)
                    last = entry >> 8
            self._entries, self._ordered = once, True


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the base's tokenizer counts. lost: tokens beyond the cutoff, of `over` rows."""

    prompt: int
    learned: int
    spread: Spread
    cutoff: int | None = None
    over: int = 0
    lost: int = 0

    def document(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "learned": self.learned,
            "cutoff": self.cutoff,
            "rows_over": self.over,
            "lost": self.lost,
            **self.spread.document(),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """One check of one file.

    counts: kind → how many; findings: the first of each kind; examples: what the trainer sees of the kept rows, which
    is more than rows where weights of 0 make each answer a row of its own (mask_history); digest: sha256 of the file.
    """

    name: str
    size_bytes: int
    form: str
    trains: str
    columns: Mapping[str, str]
    unused: tuple[str, ...]
    rows_in: int
    rows_kept: int
    examples: int
    counts: Mapping[str, int]
    findings: tuple[Finding, ...]
    digest: str
    turns: int  # of the kept rows
    characters: Spread | None = None  # of a kept row
    tokens: Tokens | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    mask_history: bool = False
    dropped: Dropped = field(default_factory=Dropped, compare=False)

    def refused(self, max_dropped: float = 0.05) -> str | None:
        """Why this data should not be trained on as it is; None where it may."""
        if self.rows_kept == 0:
            return f"No row of {self.name} can be trained on{self._first_error()}."
        if "cut_off" in self.counts:
            return f"{self.name} could not be read to its end{self._first_error('cut_off')}."
        lost = self.rows_in - self.rows_kept
        if lost > max_dropped * self.rows_in:
            return (
                f"{lost:,} of {self.rows_in:,} rows of {self.name} ({lost / self.rows_in:.1%}) cannot be used, and "
                f"{max_dropped:.1%} may be{self._first_error()}. Mend them, or allow more with max_dropped."
            )
        return None

    def _first_error(self, kind: str | None = None) -> str:
        wanted = [f for f in self.findings if f.level == "error" and f.row is not None and kind in (None, f.kind)]
        first = min(wanted, key=lambda finding: finding.row or 0, default=None)
        return "" if first is None else f"; row {first.row}: {first.message.rstrip('.')}"

    def document(self) -> dict[str, Any]:
        """For programs, and kept beside the data of a job."""
        return {
            "object": "dataset.report",
            "file": self.name,
            "size_bytes": self.size_bytes,
            "sha256": self.digest,
            "form": self.form,
            "trains": self.trains,
            "columns": dict(self.columns),
            "unused_columns": list(self.unused),
            "rows_in": self.rows_in,
            "rows_kept": self.rows_kept,
            "rows_dropped": self.rows_in - self.rows_kept,
            "examples": self.examples,
            "mask_history": self.mask_history,
            "turns": self.turns,
            "counts": dict(self.counts),
            "findings": [
                {"level": each.level, "kind": each.kind, "row": each.row, "message": each.message}
                for each in self.findings
            ],
            "characters": None if self.characters is None else self.characters.document(),
            "tokens": None if self.tokens is None else self.tokens.document(),
            "languages": dict(self.languages),
        }

    def text(self) -> str:
        """For a terminal: what it is, what is wrong with it, how long rows are."""
        lines = [
            f"{self.name}: {self.form}, for {_TRAINS[self.trains]}",
            f"Columns: {', '.join(f'{role} = {column}' for role, column in self.columns.items())}"
            + (f"; not used: {', '.join(self.unused[:8])}" if self.unused else ""),
            f"Rows: {self.rows_in:,} read, {self.rows_kept:,} kept, {self.rows_in - self.rows_kept:,} left out"
            + (f"; {self.examples:,} examples, one for each answer" if self.examples != self.rows_kept else ""),
        ]
        lines += self._languages() + self._found() + self._lengths()
        return "\n".join(lines)

    def _languages(self) -> list[str]:
        total = sum(self.languages.values())
        if not total:
            return []
        shares = [f"{name} {count / total:.0%}" for name, count in list(self.languages.items())[:6]]
        return [f"Languages: {', '.join(shares)} (of {total:,} rows)"]

    def _found(self) -> list[str]:
        lines = [] if self.counts else ["Nothing to mend."]
        for kind in (kind for kind in KINDS if kind in self.counts):
            level, meaning = KINDS[kind]
            lines.append(f"{level} {kind}: {self.counts[kind]:,} × {meaning}")
            shown = [finding for finding in self.findings if finding.kind == kind][:SHOWN]
            lines += [f"    {'row ' + str(f.row) + ': ' if f.row is not None else ''}{f.message}" for f in shown]
            if self.counts[kind] > len(shown):
                lines.append(f"    … and {self.counts[kind] - len(shown):,} more")
        return lines

    def _lengths(self) -> list[str]:
        spread = self.tokens.spread if self.tokens is not None else self.characters
        if spread is None:
            return []
        unit = "Tokens" if self.tokens is not None else "Characters"
        figures = ", ".join(f"p{share} {value:,}" for share, value in spread.percentiles.items())
        lines = [f"{unit} a row: {figures}, longest {spread.max:,}; {spread.sum:,} in all"]
        if self.tokens is not None:
            lines.append(f"Learned from: {self.tokens.learned:,} tokens of answers; read: {self.tokens.prompt:,}")
            if self.tokens.over:
                over, lost = self.tokens.over, self.tokens.lost
                lines.append(f"Cutoff {self.tokens.cutoff:,}: {over:,} rows are longer; {lost:,} tokens are lost")
        return [*lines, drawn(spread)]


_TRAINS = {"sft": "SFT", "preference": "DPO, ORPO or SimPO", "kto": "KTO"}
