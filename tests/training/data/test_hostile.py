"""Every hostile file: each bad row is found by its number and for its reason, and the good ones stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.corpus import CASES, Case, good, lines, parquet, write
from training.data.check import check, kept
from training.data.finding import KINDS, Finding
from training.data.reading import Data, open_data
from training.data.row import Row
from training.errors import DataRejected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_bad_row_is_told_by_its_number(case: Case, tmp_path: Path) -> None:
    data = open_data(write(tmp_path, case.name, case.body))
    report = check(data)
    errors = sorted((f.row or 0, f.kind) for f in report.findings if f.level == "error")
    assert errors == sorted((row, kind) for kind, row in case.errors)
    assert report.rows_kept == case.kept == len(list(kept(data, report)))
    assert report.rows_in == case.kept + len(case.errors)
    assert sum(report.counts[kind] for kind in report.counts if KINDS[kind][0] == "error") == len(case.errors)


def test_what_the_marks_at_the_beginning_of_a_file_mean_is_told(tmp_path: Path) -> None:
    bom = open_data(write(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + lines(good())))
    wide = open_data(write(tmp_path, "b.jsonl", lines(good()).decode().encode("utf-16")))
    assert "bom" in check(bom).counts
    assert "recoded" in check(wide).counts


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [
        ("nothing.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n\n  \n", "has no rows"),
        ("header.csv", b"question,answer\n", "has no rows"),
        ("book.xlsx", b"PK\x03\x04" + b"\0" * 40, "workbook"),
        ("packed.jsonl.gz", b"\x1f\x8b\x08" + b"\0" * 40, "Unpack"),
        ("picture.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
        ("broken.parquet", b"PAR1" + b"\0" * 40, "no Parquet file"),
        ("strange.jsonl", b'{"foo": 1, "bar": 2}\n', "'foo', 'bar'"),
        ("twice.csv", b"question,question,answer\na,b,c\n", "more than once"),
        ("wrapped.json", b'{"data": [{"question": "a", "answer": "b"}]}', "under 'data'"),
        ("all_bad.jsonl", b"{broken\n{worse\n", "Row 1"),
        ("pretraining.jsonl", b'{"text": "Once upon a time"}\n', "--instruction-col"),
    ],
)
def test_what_is_no_data_at_all_is_refused_with_what_to_do(
    name: str, body: bytes, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataRejected, match=sentence) as refused:
        open_data(write(tmp_path, name, body))
    assert name in refused.value.message


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "missing.jsonl", tmp_path, tmp_path / "pipe.jsonl"):
        with pytest.raises(DataRejected, match="There is no file"):
            open_data(path)


def test_parquet_rows_are_counted_by_their_place(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "What is rain?", "answer": "Water."},
        {"question": "", "answer": "x"},
        {"question": None, "answer": "y"},
    ]
    report = check(open_data(parquet(tmp_path / "rows.parquet", rows)))
    assert [(f.kind, f.row) for f in report.findings if f.level == "error"] == [("empty", 2), ("empty", 3)]


def test_a_parquet_file_that_is_cut_is_told(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", [{"question": "What is rain?", "answer": "Water."}])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataRejected, match="Parquet"):
        open_data(path)


def opened(path: Path) -> Data | str:
    """The data, or why there are none."""
    try:
        return open_data(path)
    except DataRejected as refused:
        return refused.message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=400),
        st.lists(
            st.sampled_from([b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\n", b'"messages"', b"1", b" "])
        ).map(b"".join),
        st.lists(st.binary(max_size=30), max_size=12).map(
            lambda parts: lines(good()) + b"\n".join(parts) + b"\n" + lines(good(2))
        ),
    ),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ""]),
)
def test_no_bytes_at_all_end_in_anything_but_rows_findings_or_a_sentence(
    body: bytes, suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"any{suffix}", body)
    data = opened(path)
    if isinstance(data, str):
        assert data.endswith((".", "?"))
        return
    numbers = []
    for item in data.rows():
        assert isinstance(item, Row | Finding)
        if isinstance(item, Row):
            numbers.append(item.number)
        elif item.row is not None:
            numbers.append(item.row)
    assert numbers == sorted(set(numbers))
    report = check(data)
    assert report.rows_in == len(numbers)
    assert len(list(kept(data, report))) == report.rows_kept
