"""Several files become one: each checked, its rows taken by weight and cap, every row with the name of its source.

Sources of one name are one type of rows: a cap on the name is on all of them. Must not know how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from training.data.check import check, kept
from training.data.finding import KINDS
from training.data.mixing import amount, taken, within
from training.data.openai_form import line
from training.data.reading import Data
from training.data.report import Report
from training.data.target import fresh
from training.data.tokens import Tokenizer
from training.errors import DataRejected

OnProgress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Source:
    """One file under a name. weight: how often each row is taken; cap: the most rows of all sources of that name."""

    name: str
    data: Data
    weight: float = 1.0
    cap: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What one source gives. wanted: rows of it in the mixture."""

    source: Source
    report: Report
    wanted: int

    def document(self, total: int) -> dict[str, Any]:
        report = self.report
        return {
            "source": self.source.name,
            "file": str(self.source.data.path),
            "sha256": report.digest,
            "form": report.form,
            "weight": self.source.weight,
            "cap": self.source.cap,
            "rows_in": report.rows_in,
            "rows_good": report.rows_kept,
            "rows_taken": self.wanted,
            "share": round(self.wanted / total, 6) if total else 0.0,
            "counts": dict(report.counts),
        }


def look(
    sources: Sequence[Source],
    *,
    tokens: Tokenizer | None = None,
    max_dropped: float = 0.05,
    most: int | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Part, ...]:
    """Check all files, and settle how many rows each gives; DataRejected where one cannot be used.

    max_dropped: the share of a file's rows that may be unusable; most: rows in all.
    """
    first = sources[0].data
    for source in sources:
        if source.data.trains != first.trains:
            raise DataRejected(
                f"{source.data.path.name} holds other rows ({source.data.trains}) than {first.path.name} "
                f"({first.trains}). Mix one kind at a time."
            )
    reports = []
    for source in sources:
        tell = _teller(on_progress, f"Checking {source.data.path.name}")
        reports.append(check(source.data, tokens=tokens, near_rows=0, on_progress=tell))
        refusal = reports[-1].refused(max_dropped)
        if refusal is not None:
            raise DataRejected(refusal)
    wanted = within(_capped(sources, [report.rows_kept for report in reports]), most)
    if not sum(wanted):
        raise DataRejected("No row is taken: the weights and caps are too small for so few rows. Raise them.")
    return tuple(map(Part, sources, reports, wanted))


def mix(
    parts: Sequence[Part], target: Path, left_out: Path, *, seed: int, on_progress: OnProgress | None = None
) -> int:
    """Write the rows that are taken, source by source, as a recipe's files follow each other; how many. StorageFull.

    left_out: gets the number and the reason of each row that could not be used; it is not there where there is none.
    """
    rows = 0
    with fresh(target) as file:
        for part in parts:
            data, name = part.source.data, part.source.name
            tell = _teller(on_progress, f"Mixing {data.path.name}")
            good = kept(data, part.report, None if tell is None else _bounded(tell, data.size_bytes))
            for row in taken(good, part.report.rows_kept, part.wanted, seed):
                file.write(line(row, {"source": name, "source_row": row.number}))
                rows += 1
        if rows != sum(part.wanted for part in parts):
            raise DataRejected("A file was changed while it was read. Run this again.")
    if any(len(part.report.dropped) for part in parts):
        with fresh(left_out) as file:
            for part in parts:
                _reasons(part, file.write)
    else:
        left_out.unlink(missing_ok=True)
    return rows


def _reasons(part: Part, write: Callable[[bytes], Any]) -> None:
    messages = {(finding.row, finding.kind): finding.message for finding in part.report.findings}
    for number, kind in part.report.dropped.items():
        why = messages.get((number, kind), KINDS[kind][1])
        about = {"source": part.source.name, "row": number, "kind": kind, "message": why}
        write(orjson.dumps(about) + b"\n")


def _capped(sources: Sequence[Source], rows: Sequence[int]) -> list[int]:
    """Rows of each source, those of one name together within their cap."""
    wanted = [amount(count, source.weight) for source, count in zip(sources, rows, strict=True)]
    caps: Mapping[str, int | None] = {source.name: source.cap for source in sources}
    for name, cap in caps.items():
        places = [place for place, source in enumerate(sources) if source.name == name]
        for place, count in zip(places, within([wanted[place] for place in places], cap), strict=True):
            wanted[place] = count
    return wanted


def _teller(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(what, done, total)


def _bounded(tell: Callable[[int, int], None], size: int) -> Callable[[int], None]:
    return lambda done: tell(min(done, size), size)
