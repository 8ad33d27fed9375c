"""`loragate datasets`: what people and programs read on stdout, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from gateway.cli import main
from tests.training.data.corpus import TWELVE, good, lines, write
from training.data.reading import open_data


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["datasets", *map(str, words)])


def test_check_shows_each_bad_row_and_ends_with_one(tmp_path: Path) -> None:
    result = run("check", write(tmp_path, "a.jsonl", TWELVE))
    assert result.exit_code == 1
    for said in ("error broken_json: 1 ×", "row 4: Message 2 has the role 'robot'", "15 read, 2 kept, 13 left out"):
        assert said in result.stdout
    assert result.stderr.startswith("Error: 13 of 15 rows of a.jsonl")
    assert run("check", tmp_path / "a.jsonl", "--max-dropped", "0.9").exit_code == 0


def test_check_as_json_is_one_document_with_tokens_report_and_picture(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "问题,答案\n什么是雨？,云里的水。\n".encode())
    files: list[str | Path] = ["--report", tmp_path / "r.json", "--picture", tmp_path / "p.png"]
    result = run("check", path, "--json", "--base", "demo", "--cutoff", "24", *files)
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["columns"] == {"instruction": "问题", "output": "答案"}
    assert document["tokens"]["rows_over"] == 1
    assert json.loads((tmp_path / "r.json").read_text()) == document
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_refusal_is_one_document_too(tmp_path: Path) -> None:
    result = run("check", write(tmp_path, "a.jsonl", lines(good(), "{")), "--json")
    assert (result.exit_code, json.loads(result.stdout)["refused"][:14]) == (1, "1 of 2 rows of")
    result = run("check", tmp_path / "missing.jsonl", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (1, "invalid_file")


def test_columns_can_be_named_in_both_ways(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"frage,antwort\nWas ist Regen?,Wasser.\n")
    unknown = run("check", path)
    assert unknown.exit_code == 1
    assert "'frage', 'antwort'" in unknown.stderr
    for words in (
        ["--instruction-col", "frage", "--output-col", "antwort"],
        ["--columns", "instruction=frage,output=antwort"],
    ):
        assert run("check", path, *words).exit_code == 0
    assert run("check", path, "--columns", "frage").exit_code == 2
    assert run("check", path, "--cutoff", "100").exit_code == 2


def test_convert_writes_what_is_good_and_says_what_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", TWELVE)
    assert run("convert", path, "--to", tmp_path / "out").exit_code == 1  # too many rows are bad
    assert not (tmp_path / "out").exists()
    result = run("convert", path, "--to", tmp_path / "out", "--max-dropped", "0.9", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["files"][0]["rows"], document["dropped"]) == (0, 2, 13)
    assert sum(1 for _ in open_data(tmp_path / "out" / "train.jsonl").rows()) == 2
    left_out = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(each["row"], each["kind"]) for each in left_out[:2]] == [(2, "broken_json"), (3, "not_an_object")]
    assert all(each["message"] for each in left_out)
    again = run("convert", path, "--to", tmp_path / "out", "--max-dropped", "0.9")
    assert "is there already" in again.stderr
    itself = run("convert", tmp_path / "out" / "train.jsonl", "--to", tmp_path / "out", "--force")
    assert "is the file itself" in itself.stderr


def test_split_holds_out_a_share_that_stays(tmp_path: Path) -> None:
    rows = [good(n) for n in range(200)]
    small, large = write(tmp_path, "s.jsonl", lines(*rows[:100])), write(tmp_path, "l.jsonl", lines(*rows))
    for path in (small, large):
        assert run("split", path, "--to", tmp_path / path.stem, "--share", "0.2", "--near-rows", "0").exit_code == 0
    held = {name: set((tmp_path / name / "valid.jsonl").read_text().splitlines()) for name in "sl"}
    trained = set((tmp_path / "l" / "train.jsonl").read_text().splitlines())
    assert 5 < len(held["s"]) < 40
    assert held["s"] < held["l"]
    assert len(trained) + len(held["l"]) == 200
    assert set(json.loads((tmp_path / "l" / "dataset_info.json").read_text())) == {"train", "valid"}
