"""A file of training data, opened: its form and columns, and its rows as a stream that can be begun again.

The door to containers (records.py) and forms (forms.py). Bounded memory, whatever the file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from training.data.columns import MARKS, listed
from training.data.finding import Finding, found
from training.data.forms import Form, Trains, row_of, settle
from training.data.records import Container, OnBytes, Record, container, csv_header, records
from training.data.row import Row
from training.errors import DataRejected

MOST_COLUMNS = 1000  # whose first appearance is told
HEAD_RECORDS = 50  # that a form is guessed from


@dataclass(frozen=True, slots=True)
class Data:
    """One file, which is read anew whenever its rows are asked for."""

    path: Path
    container: Container
    shape: Form
    size_bytes: int

    @property
    def form(self) -> str:
        return self.shape.name

    @property
    def trains(self) -> Trains:
        """What can be trained with it: sft, preference (DPO and its kin), kto."""
        return self.shape.trains

    @property
    def columns(self) -> Mapping[str, str]:
        """role → column, guessed or given; to be shown."""
        return self.shape.columns

    @property
    def unused(self) -> tuple[str, ...]:
        return self.shape.unused

    def rows(self, on_bytes: OnBytes | None = None) -> Iterator[Row | Finding]:
        """Every record as a row, or as what is wrong with it. on_bytes: called now and then with how far it is."""
        if self.container.bom and self.container.encoding == "utf-8-sig":
            yield found("bom", "The file begins with a byte order mark, which is passed over.")
        elif self.container.bom:
            yield found("recoded", f"The file is read as {self.container.encoding.upper()}. UTF-8 is safer.")
        known = {*self.shape.columns.values(), *self.shape.unused, *self.shape.late, *MARKS}
        for record in records(self.path, self.container, on_bytes):
            if isinstance(record, Finding):
                yield record
                continue
            if len(known) < MOST_COLUMNS and not record.value.keys() <= known:
                late = sorted(record.value.keys() - known)
                yield found("unused", f"Not read: {listed(late)}, first seen in row {record.number}.")
                known.update(late)
            yield row_of(self.shape, record)
        if on_bytes is not None:
            on_bytes(self.size_bytes)


def open_data(path: Path, *, columns: Mapping[str, str] | None = None, form: str | None = None) -> Data:
    """The file `path`, its form and columns settled from its first records. DataRejected says what is in the way.

    columns: role → column (columns.NAMES has the roles), where the guess would be wrong; form: one of forms.FORMS.
    """
    kind = container(path)
    good: list[Record] = []
    bad: Finding | None = None
    with closing(records(path, kind)) as head:
        for record in islice(head, HEAD_RECORDS):
            if isinstance(record, Record):
                good.append(record)
            elif bad is None:
                bad = record
    names = csv_header(path, kind) if kind.name == "csv" else list(dict.fromkeys(n for r in good for n in r.value))
    if not good:
        if bad is not None:
            raise DataRejected(f"Nothing in {path.name} can be read. Row {bad.row}: {bad.message}")
        raise DataRejected(f"{path.name} has no rows. Write one example a line into it.")
    wrapped = [name for name, value in good[0].value.items() if isinstance(value, list) and len(good) == 1]
    try:
        shape = settle(names, [record.value for record in good], columns or {}, form)
    except DataRejected as exc:
        if kind.name in ("json", "jsonl") and len(good) == len(wrapped) == 1 and not columns:
            where = f"whose rows may be under {wrapped[0][:40]!r}"
            raise DataRejected(f"{path.name} is one object, {where}. Save that list alone, as JSON or JSONL.") from None
        raise DataRejected(f"{path.name}: {exc.message}", param=exc.param) from None
    return Data(path, kind, shape, path.stat().st_size)
