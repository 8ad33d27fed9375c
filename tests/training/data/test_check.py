"""What all rows together show: repeats, contradictions, leaks, lengths, languages; and what follows for the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.data.corpus import chat, good, lines, write
from training.data.check import check, kept
from training.data.lengths import Lengths, drawn, picture
from training.data.reading import Data, open_data
from training.data.report import Report
from training.data.row import Row
from training.data.tokens import Tokenizer
from training.demo import DEMO
from training.errors import DataRejected

LONG = "The parcel left our warehouse on Monday and will be with you on Wednesday, before noon if the weather is kind."


def rows_of(report: Report, kind: str) -> list[int | None]:
    return [finding.row for finding in report.findings if finding.kind == kind]


def said(question: str, answer: str) -> dict[str, object]:
    return chat(("user", question), ("assistant", answer))


@pytest.fixture
def repeated(tmp_path: Path) -> Data:
    rows = [
        said("Where is my parcel?", LONG),
        said("How long is the guarantee?", "Two years."),
        said("Where is my parcel?", LONG),
        said("How long is the guarantee?", "Three years."),
        said("Where is my parcel now?", LONG),
        said("我的包裹在哪里？", "包裹星期一离开了我们的仓库，如果天气好的话，星期三中午之前就会送到您的手上。"),
        said("我的包裹现在在哪里？", "包裹星期一离开了我们的仓库，如果天气好的话，星期三中午之前就会送到您的手上。"),
        said("Where is my parcel?", LONG),
    ]
    return open_data(write(tmp_path, "a.jsonl", lines(*rows)))


def test_repeats_are_warnings_that_name_the_first_row_and_are_kept(repeated: Data) -> None:
    report = check(repeated)
    assert rows_of(report, "duplicate") == [3, 8]
    assert rows_of(report, "contradiction") == [4]
    assert rows_of(report, "near_duplicate") == [5, 7]
    assert {f.message for f in report.findings if f.kind == "near_duplicate"} == {
        "Nearly the same as row 1.",
        "Nearly the same as row 6.",
    }
    assert (report.rows_kept, report.refused()) == (8, None)


def test_what_drop_names_is_left_out_and_counted(repeated: Data) -> None:
    report = check(repeated, drop=("duplicate", "contradiction", "near_duplicate"))
    assert [row.number for row in kept(repeated, report)] == [1, 2, 6]
    assert (report.rows_in, report.rows_kept, report.examples, report.turns) == (8, 3, 3, 6)
    assert list(report.dropped.items()) == [
        (3, "duplicate"),
        (4, "contradiction"),
        (5, "near_duplicate"),
        (7, "near_duplicate"),
        (8, "duplicate"),
    ]
    with pytest.raises(DataRejected, match="'broken_json'"):
        check(repeated, drop=("broken_json",))


def test_rows_of_the_validation_data_are_found(repeated: Data, tmp_path: Path) -> None:
    held = [said("Where is my parcel?", LONG), said("How long is the guarantee?", "Four years.")]
    report = check(repeated, validation=open_data(write(tmp_path, "v.jsonl", lines(*held))))
    assert rows_of(report, "leaked") == [1, 2, 3, 4, 8]
    assert rows_of(report, "nearly_leaked") == [5]


def test_where_near_duplicates_were_not_looked_for_is_said(repeated: Data) -> None:
    assert "sampled" in check(repeated, near_rows=2).counts
    assert "near_duplicate" not in check(repeated, near_rows=0).counts


def test_secrets_and_personal_data_are_told_and_never_repeated(tmp_path: Path) -> None:
    secret, card = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0", "4111 1111 1111 1111"
    report = check(
        open_data(write(tmp_path, "a.jsonl", lines(said("My key?", secret), said(f"Card {card}?", "joe@corp.de"))))
    )
    assert (rows_of(report, "secret"), rows_of(report, "personal")) == ([1], [2])
    shown = json.dumps(report.document()) + report.text()
    assert secret not in shown
    assert card not in shown
    assert "joe" not in shown


def test_more_bad_rows_than_allowed_refuse_the_file_with_the_first_reason(tmp_path: Path) -> None:
    report = check(
        open_data(write(tmp_path, "a.jsonl", lines(*(good(n) for n in range(18)), "{", chat(("user", "Hi")))))
    )
    assert report.refused(0.1) is None
    refused = report.refused(0.05)
    assert refused is not None
    assert "2 of 20 rows" in refused
    assert "row 19" in refused
    nothing = check(open_data(write(tmp_path, "b.jsonl", lines(chat(("user", "Hi"))))))
    assert "No row of b.jsonl" in (nothing.refused(1.0) or "")
    cut = check(open_data(write(tmp_path, "c.json", json.dumps([good(n) for n in range(99)]).encode()[:-9])))
    assert "could not be read to its end" in (cut.refused(1.0) or "")


def test_findings_are_capped_and_counts_are_not(tmp_path: Path) -> None:
    report = check(open_data(write(tmp_path, "a.jsonl", lines(good(), *["{"] * 500))))
    assert report.counts["broken_json"] == 500
    assert len(rows_of(report, "broken_json")) == 100
    assert len(report.dropped) == 500


def test_languages_are_named_where_there_is_enough_to_tell(tmp_path: Path) -> None:
    rows = [
        said("Where is my parcel?", LONG),
        said("Wo ist mein Paket?", "Das Paket hat unser Lager am Montag verlassen und kommt am Mittwoch bei Ihnen an."),
        said("我的包裹在哪里？", "包裹星期一离开了我们的仓库，星期三会送到。"),
        said("1+1?", "2"),
    ]
    assert check(open_data(write(tmp_path, "a.jsonl", lines(*rows)))).languages == {"?": 1, "de": 1, "en": 1, "zh": 1}


def test_tokens_are_counted_and_what_the_cutoff_loses(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, "a.jsonl", lines(said("Where is my parcel?", LONG), said("Who?", "Me."))))
    tokenizer = Tokenizer.of(DEMO / "base")
    counted = [sum(tokenizer.count(row)) for row in data.rows() if isinstance(row, Row)]
    report = check(data, tokens=tokenizer, cutoff=counted[0] - 5)
    assert report.tokens is not None
    assert (report.tokens.over, report.tokens.lost) == (1, 5)
    assert report.tokens.prompt + report.tokens.learned == sum(counted) == report.tokens.spread.sum
    assert rows_of(report, "too_long") == [1]
    assert rows_of(check(data, tokens=tokenizer, cutoff=counted[0]), "too_long") == []
    dropped = check(data, tokens=tokenizer, cutoff=counted[0] - 5, drop=("too_long",))
    assert dropped.tokens is not None
    assert (dropped.rows_kept, dropped.tokens.lost, dropped.tokens.spread.sum) == (1, 0, counted[1])


def test_text_that_is_a_control_token_of_the_base_is_told(tmp_path: Path) -> None:
    data = open_data(
        write(tmp_path, "a.jsonl", lines(said("Hi", "Bye<|im_end|>"), said("Hi there", "{{idx}} is fine in an answer")))
    )
    report = check(data, tokens=Tokenizer.of(DEMO / "base"))
    assert rows_of(report, "control_token") == [1]
    marks = check(open_data(write(tmp_path, "b.jsonl", lines(said("Turn {{idx}}?", "x"), said("An <image>?", "y")))))
    assert rows_of(marks, "placeholder") == [1, 2]


def test_kto_with_one_label_alone_is_told(tmp_path: Path) -> None:
    rows = [{**said(f"Question {n}?", "x"), "label": True} for n in range(3)]
    assert "one_label" in check(open_data(write(tmp_path, "a.jsonl", lines(*rows)))).counts


def test_progress_comes_to_the_end(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, "a.jsonl", lines(*(said(f"{n}?", LONG * 50) for n in range(500)))))
    told: list[tuple[int, int]] = []
    check(data, on_progress=lambda done, total: told.append((done, total)), near_rows=0)
    assert len(told) > 1
    assert told == sorted(told)
    assert told[-1] == (data.size_bytes, data.size_bytes)


def test_the_report_is_json_and_text(repeated: Data) -> None:
    report = check(repeated)
    document = json.loads(json.dumps(report.document()))
    assert document["object"] == "dataset.report"
    assert document["rows_in"] == document["rows_kept"] + document["rows_dropped"] == 8
    text = report.text()
    assert "warning duplicate: 2 ×" in text
    assert "row 3: The same as row 1." in text


def test_lengths_are_drawn_and_pictured_the_same_each_time() -> None:
    spread = Lengths([*range(100), 5000, 123_456]).spread()
    assert spread is not None
    assert (spread.min, spread.max, spread.count) == (0, 123_456, 102)
    assert (spread.percentiles[50], spread.percentiles[90]) == (50, 91)
    assert sum(rows for _, _, rows in spread.bars) == 102
    assert drawn(spread).count("\n") == len(spread.bars) - 1
    first, second = (picture(spread, title="長さ $x", unit="tokens", cutoff=2048) for _ in range(2))
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert first == second
