"""What a file holds, record by record, in bounded memory: JSON Lines, JSON, CSV and TSV, Parquet.

Tells containers apart by their first bytes and reads them. Must not know forms of training data.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from training.data.finding import Finding, found
from training.data.json_values import MAX_RECORD, Piece, broken, not_utf8, values
from training.errors import DataRejected
from training.extras import need

TELL_EVERY = 1 << 20  # bytes between two calls of on_bytes
HEAD = 1 << 16
DELIMITERS = ",;\t|"
OnBytes = Callable[[int], None]  # how many bytes were read so far


@dataclass(frozen=True, slots=True)
class Record:
    """One object of the file, under its number (row.py)."""

    number: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Container:
    """How a file is laid out. delimiter: of CSV; encoding: what the bytes are, for all but Parquet."""

    name: str  # jsonl, json, csv, parquet
    encoding: str = "utf-8"
    delimiter: str = ","
    bom: bool = False


def container(path: Path) -> Container:
    """What `path` is, by its first bytes and then by its name. DataRejected for what holds no rows."""
    try:
        if not path.is_file():
            raise DataRejected(f"There is no file {path.name} here. Name a file of rows: CSV, JSON, JSONL or Parquet.")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as exc:
        raise DataRejected(f"{path.name} cannot be read: {exc.strerror or exc}.") from None
    if not head:
        raise DataRejected(f"{path.name} is empty. Write one example a line into it.")
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return Container("parquet")
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")):
        raise DataRejected(
            f"{path.name} is an archive or a workbook, not text. Unpack it, or save the sheet as CSV (UTF-8)."
        )
    encoding, bom = _encoding(head)
    text = head.decode(encoding, "replace").lstrip("\ufeff")
    start = text.lstrip()[:1]
    if suffix in (".csv", ".tsv") or (start not in ("[", "{") and suffix not in (".json", ".jsonl", ".ndjson")):
        if "\0" in text:
            raise DataRejected(f"{path.name} is not text. Save it as CSV, JSON, JSONL or Parquet.")
        return Container("csv", encoding, "\t" if suffix == ".tsv" else _delimiter(text), bom)
    return Container("jsonl" if _is_lines(text, start, suffix) else "json", encoding, bom=bom)


def _encoding(head: bytes) -> tuple[str, bool]:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name, True
    return "utf-8", False


def _is_lines(text: str, start: str, suffix: str) -> bool:
    """Whether each line is a record; a list, or objects over several lines, are JSON."""
    if suffix in (".jsonl", ".ndjson"):
        return True
    if start == "[":
        return False
    first, newline, _ = text.lstrip().partition("\n")
    if not newline:
        return True
    try:
        orjson.loads(first)
    except ValueError:
        return first.rstrip().endswith("}")  # else an object that goes on in the next line
    return True


def _delimiter(text: str) -> str:
    header = text.lstrip("\r\n").partition("\n")[0]
    return max(DELIMITERS, key=lambda mark: (header.count(mark), -DELIMITERS.index(mark)))


def records(path: Path, kind: Container, on_bytes: OnBytes | None = None) -> Generator[Record | Finding, None, None]:
    """Every record of `path`, or what is wrong with it, in the file's order."""
    if kind.name == "parquet":
        yield from _parquet(path, on_bytes)
        return
    with path.open("rb") as file:
        if kind.name == "csv":
            yield from _csv(file, kind, on_bytes)
        elif kind.name == "json":
            yield from _json(file, kind, on_bytes)
        else:
            yield from _lines(file, kind, on_bytes)


def _lines(file: BinaryIO, kind: Container, on_bytes: OnBytes | None) -> Iterator[Record | Finding]:
    told = 0
    for number, line in enumerate(_raw_lines(file, kind), 1):
        if on_bytes is not None and (at := file.tell()) - told >= TELL_EVERY:
            told = at
            on_bytes(at)
        if isinstance(line, str):
            yield found("too_large" if line == "long" else "cut_off", _TOO_LONG if line == "long" else _CUT, number)
            if line == "cut":
                return
        elif line.strip():
            yield _parsed(number, line)


_TOO_LONG = "The line is longer than 16 MiB. Split the record."
_CUT = "The bytes are not the encoding that the file begins with, so nothing from here on was read. Save it as UTF-8."


def _raw_lines(file: BinaryIO, kind: Container) -> Iterator[bytes | str]:
    """Lines as UTF-8; "long" for one that is over the limit, "cut" where the encoding breaks."""
    if kind.encoding.startswith("utf-8"):
        if kind.bom:
            file.seek(len(codecs.BOM_UTF8))
        while line := file.readline(MAX_RECORD + 1):
            if len(line) > MAX_RECORD:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_RECORD)
                yield "long"
            else:
                yield line
        return
    with _decoded(file, kind.encoding) as text:
        try:
            while line_text := text.readline(MAX_RECORD):
                yield line_text.encode()
        except UnicodeError:
            yield "cut"


@contextmanager
def _decoded(file: BinaryIO, encoding: str, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """The file as text, with its line ends as they are."""
    text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
    try:
        yield text
    finally:
        text.detach()  # whoever opened the file closes it


def _parsed(number: int, line: bytes, where: str = "") -> Record | Finding:
    try:
        value = orjson.loads(line)
    except ValueError as exc:
        return broken(line, exc, number, where)
    if not isinstance(value, dict):
        return found("not_an_object", f"This is {_named(value)}, not an object like {{…}}.{where}", number)
    return Record(number, value)


def _named(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _json(file: BinaryIO, kind: Container, on_bytes: OnBytes | None) -> Iterator[Record | Finding]:
    source: BinaryIO = file
    if kind.encoding in ("utf-16", "utf-32"):
        source = codecs.EncodedFile(file, "utf-8", kind.encoding)
    elif kind.bom:
        file.seek(len(codecs.BOM_UTF8))
    for piece in values(source, None if on_bytes is None else lambda: on_bytes(file.tell())):
        if isinstance(piece, Piece):
            yield _parsed(piece.place, piece.text, f" It begins in line {piece.line} of the file.")
        else:
            yield piece


def _csv(file: BinaryIO, kind: Container, on_bytes: OnBytes | None) -> Iterator[Record | Finding]:
    csv.field_size_limit(MAX_RECORD)
    with _decoded(file, kind.encoding, "surrogateescape") as text:
        reader = csv.reader(_bounded(text), delimiter=kind.delimiter, strict=True)
        header: list[str] | None = None
        told = 0
        while True:
            number = reader.line_num + 1
            if on_bytes is not None and (at := file.tell()) - told >= TELL_EVERY:
                told = at
                on_bytes(at)
            try:
                fields = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeError) as exc:
                whole = "end of data" in str(exc) or "limit" in str(exc) or isinstance(exc, UnicodeError)
                yield _bad_csv(str(exc), number, whole)
                if whole:
                    return
                continue
            if header is None and any(fields):
                header = [name.strip() for name in fields]
            elif header is not None and any(fields):
                yield _fields(header, fields, number)


def _bounded(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MAX_RECORD):
        if len(line) == MAX_RECORD and not line.endswith("\n"):
            raise csv.Error("a line is over the limit")
        yield line


def _bad_csv(reason: str, number: int, whole: bool) -> Finding:
    if not whole:
        return found("wrong_columns", f"A quote stands where none can ({reason}). Write quotes in text twice.", number)
    if "end of data" in reason:
        return found("cut_off", "A quote that opens here is never closed. Write quotes in text twice.", number)
    return found("cut_off", f"This record and what follows cannot be read ({reason}). Is a quote missing?", number)


def _fields(header: list[str], fields: list[str], number: int) -> Record | Finding:
    if len(fields) != len(header):
        return found(
            "wrong_columns",
            f"{len(fields)} fields, and the header has {len(header)}. Put text that has the delimiter in quotes.",
            number,
        )
    if any("\udc80" <= char <= "\udcff" for field in fields if not field.isascii() for char in field):
        return found("encoding", not_utf8(",".join(fields).encode("utf-8", "surrogateescape")), number)
    return Record(number, dict(zip(header, fields, strict=True)))


def csv_header(path: Path, kind: Container) -> list[str]:
    """The names of the columns. DataRejected where two are the same."""
    csv.field_size_limit(MAX_RECORD)
    with path.open("rb") as file, _decoded(file, kind.encoding, "replace") as text:
        try:
            rows = csv.reader(_bounded(text), delimiter=kind.delimiter)
            header = [name.strip() for name in next((row for row in rows if any(row)), [])]
        except (csv.Error, UnicodeError) as exc:
            raise DataRejected(f"The first line of {path.name} is no header of columns ({exc}).") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataRejected(f"{path.name} has the column {twice[0]!r} more than once. Give each column its own name.")
    return header


def _parquet(path: Path, on_bytes: OnBytes | None) -> Iterator[Record | Finding]:
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    number, size = 0, path.stat().st_size
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            total = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=128):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, value)
                if on_bytes is not None:
                    on_bytes(size * number // total)
    except (arrow.ArrowException, OSError, ValueError) as exc:
        if number == 0:
            raise DataRejected(f"{path.name} is no Parquet file that can be read: {_first_line(exc)}.") from None
        reason = f"The file cannot be read from here on: {_first_line(exc)}."
        yield found("cut_off", reason, number + 1)


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200].rstrip(".")
