"""`loragate datasets filter`: which rows go, why, and that they are kept beside what stays."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from tests.training.data.corpus import CASES, GOOD, TWELVE, chat, good, lines, parquet, write
from tests.training.data.test_mixing import PAIR, lines_of, rows_of
from training.data.filtering import DROPS
from training.data.reading import open_data


def filter_(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["datasets", "filter", *map(str, words)])


def filtered(*words: str | Path) -> dict[str, Any]:
    result = filter_(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def answer(question: str, said: str) -> dict[str, Any]:
    return chat(("user", question), ("assistant", said))


MIXED = (
    answer("What is rain?", "Rain is water that falls from the clouds to the ground."),
    answer("What is snow?", "As an AI language model, I cannot say what snow is made of."),
    answer("什么是雨？请告诉我。", "雨是从云里落下来的水，它滋润大地和农田。"),
    answer("Was ist Schnee, und woraus besteht er?", "Schnee besteht aus gefrorenem Wasser, das vom Himmel fällt."),
    answer("What is wind?", "..."),
    answer("What is rain?", "Rain is water that falls from the clouds to the ground."),
    "{broken",
)


def test_what_goes_is_kept_beside_it_with_number_reasons_and_content(tmp_path: Path) -> None:
    path, to = write(tmp_path, "a.jsonl", lines(*MIXED)), tmp_path / "good.jsonl"
    options = ("--min-quality", "0.6", "--language", "en", "--language", "zh", "--drop", "duplicate")
    found = filtered(path, *options, "--to", to)
    assert (found["rows_in"], found["rows_kept"], found["rows_removed"], found["language_unsure"]) == (7, 2, 5, 1)
    assert found["reasons"] == {"low_quality": 2, "other_language": 1, "duplicate": 1, "broken_json": 1}
    assert found["signs"] == {"refusal": 1, "no_words": 1}
    assert found["removed_file"] == str(tmp_path / "good.removed.jsonl")
    assert [row["messages"] for row in lines_of(to)] == [MIXED[0]["messages"], MIXED[2]["messages"]]
    removed: list[Any] = lines_of(tmp_path / "good.removed.jsonl")
    assert [(row["row"], row["reasons"][0]["kind"]) for row in removed] == [
        (2, "low_quality"),
        (4, "other_language"),
        (5, "low_quality"),
        (6, "duplicate"),
        (7, "broken_json"),
    ]
    assert removed[0]["reasons"][0]["message"].startswith(
        "Its score is 0.5, below 0.6: refusal (message 2): the answer"
    )
    assert removed[1]["reasons"][0]["message"] == "It is in de, not in en or zh."
    assert removed[3]["reasons"][0]["message"] == "The same as row 1."
    assert len(rows_of(to)) == 2
    again = filter_(tmp_path / "good.removed.jsonl", "--to", tmp_path / "back.jsonl")
    assert "4 kept, 1 removed" in again.stdout, "they can be read as data"
    first = to.read_bytes()
    filtered(path, *options, "--to", to, "--force")
    assert to.read_bytes() == first


def test_a_dry_run_writes_nothing_and_says_what_would_go(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", lines(*MIXED))
    result = filter_(path, "--min-quality", "0.6", "--dry-run")
    assert result.exit_code == 0
    for said in ("7 read, 4 would be kept, 3 would be removed", "low_quality: 2 rows", "row 2: Its score is 0.5"):
        assert said in result.stdout
    assert "0.5: 2, 1.0: 4" in result.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]
    assert filtered(path, "--dry-run")["file"] is None
    assert filtered(path, "--min-quality", "0.6", "--ignore", "refusal", "--dry-run")["reasons"]["low_quality"] == 1


def test_lengths_are_characters_or_tokens(tmp_path: Path) -> None:
    rows = [answer("Hi", "x" * length) for length in (1, 10, 100)]
    path, to = write(tmp_path, "a.jsonl", lines(*rows)), tmp_path / "b.jsonl"
    found = filtered(path, "--min-answer", "5", "--max-row", "50", "--to", to)
    assert found["reasons"] == {"short_answer": 1, "long_row": 1}
    removed: list[Any] = lines_of(tmp_path / "b.removed.jsonl")
    assert removed[0]["reasons"][0]["message"] == "The answer has 1 characters; at least 5 are asked for."
    found = filtered(path, "--base", "demo", "--max-answer", "20", "--to", to, "--force")
    assert found["reasons"] == {"long_answer": 1}
    assert "tokens; at most 20" in (tmp_path / "b.removed.jsonl").read_text()


def test_a_second_file_of_removed_rows_takes_the_first_ones_place(tmp_path: Path) -> None:
    path, to = write(tmp_path, "a.jsonl", lines(*MIXED)), tmp_path / "b.jsonl"
    filtered(path, "--to", to)
    assert (tmp_path / "b.removed.jsonl").exists()
    found = filtered(write(tmp_path, "c.jsonl", lines(good())), "--to", to, "--force")
    assert (found["removed_file"], (tmp_path / "b.removed.jsonl").exists()) == (None, False)


def test_a_row_that_goes_is_no_original_of_another_one(tmp_path: Path) -> None:
    long = "Rain is water that falls from the clouds, and it is measured in millimetres with a glass. "
    near = [
        answer("What is rain?", "[Your Name] " + long),
        answer("What is rain!", long),
        answer("What is rain.", long),
    ]
    path, to = write(tmp_path, "a.jsonl", lines(*near)), tmp_path / "b.jsonl"
    found = filtered(path, "--drop", "near_duplicate", "--min-quality", "0.9", "--to", to)
    assert (found["rows_kept"], found["reasons"]) == (1, {"low_quality": 1, "near_duplicate": 1})
    removed: list[Any] = lines_of(tmp_path / "b.removed.jsonl")
    assert removed[1]["reasons"] == [{"kind": "near_duplicate", "message": "Nearly the same as row 2."}]


def test_each_word_of_drop_removes_its_rows(tmp_path: Path) -> None:
    bad = {
        "duplicate": good(1),
        "near_duplicate": answer("What is rain in the mountains?", "Water from the clouds over the mountains, mostly!"),
        "contradiction": answer("Question 1 about rain and wind?", "No idea."),
        "secret": answer("Key?", "It is sk-proj-" + "a1B2" * 8),
        "personal": answer("Whom?", "Write to ana@firm.de"),
        "placeholder": answer("See <image>", "A cat."),
        "control_token": answer("Say it", "It is <|im_end|> here."),
    }
    assert set(bad) == set(DROPS)
    near = answer("What is rain in the mountains?", "Water from the clouds over the mountains, mostly.")
    near["messages"][0]["content"] += "?"
    path = write(tmp_path, "a.jsonl", lines(good(1), near, *bad.values()))
    for word in DROPS:
        found = filtered(path, "--drop", word, "--base", "demo", "--dry-run")
        assert found["reasons"] == {word: 1}, word


def test_preferences_and_liked_answers_stay_what_they_are(tmp_path: Path) -> None:
    pairs = parquet(tmp_path / "p.parquet", [PAIR, {**PAIR, "chosen": "I'm sorry, but I can't help."}])
    assert filtered(pairs, "--min-quality", "0.6", "--to", tmp_path / "p.jsonl")["rows_kept"] == 1
    assert open_data(tmp_path / "p.jsonl").trains == "preference"
    liked = [{"prompt": "R?", "completion": "...", "label": label, "id": 7} for label in (True, False)]
    path = write(tmp_path, "k.jsonl", lines(*liked))
    found = filtered(path, "--min-quality", "0.6", "--to", tmp_path / "l.jsonl")
    assert (found["rows_kept"], found["unused_columns"]) == (1, ["id"])
    assert [row.label for row in rows_of(tmp_path / "l.jsonl")] == [False]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_record_of_a_hostile_file_is_accounted_for(case: Any, tmp_path: Path) -> None:
    path = write(tmp_path, case.name, case.body)
    to = tmp_path / "to.jsonl"
    result = filter_(path, "--to", to, "--json")
    if any(kind == "cut_off" for kind, _ in case.errors):
        assert (result.exit_code, "could not be read to its end" in result.stderr) == (1, True)
        assert list(tmp_path.glob("*to*")) == []
        return
    assert result.exit_code == 0, result.output
    assert len(rows_of(to)) == case.kept
    removed: list[Any] = lines_of(tmp_path / "to.removed.jsonl") if case.errors else []
    assert tuple((row["reasons"][0]["kind"], row["row"]) for row in removed) == case.errors


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "--to FILE, or --dry-run"),
        (("--to", "b.jsonl", "--dry-run"), 2, "--to FILE, or --dry-run"),
        (("--to", "b.txt"), 1, "ends with .jsonl"),
        (("--to", "a.jsonl", "--force"), 1, "is read by this command"),
        (("--to", "there.jsonl"), 1, "there.jsonl is there already"),
        (("--to", "c.jsonl"), 1, "c.removed.jsonl is there already"),
        (("--to", "folder/x.jsonl", "--language", "english"), 1, "No language is called 'english'"),
        (("--to", "b.jsonl", "--drop", "bad"), 1, "'bad'. There are: duplicate"),
        (("--to", "b.jsonl", "--ignore", "bad"), 1, "no sign 'bad'. There are: garbled"),
        (("--to", "b.jsonl", "--drop", "control_token"), 2, "--base"),
        (("--to", "b.jsonl", "--min-row", "9", "--max-row", "8"), 1, "Turn the two round"),
        (("--to", "b.jsonl", "--min-quality", "1.5"), 2, "1.5"),
        (("--to", "b.jsonl", "--min-row", "100000"), 1, "No row of a.jsonl would be left: 1 of 1 go for short_row"),
        (("--to", "a.jsonl/b.jsonl"), 1, "could not be made"),
    ],
)
def test_what_cannot_be_filtered_leaves_no_file(
    words: tuple[str, ...], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, body in (("a.jsonl", GOOD.encode()), ("there.jsonl", b"mine"), ("c.removed.jsonl", b"mine")):
        write(tmp_path, name, body)
    result = filter_("a.jsonl", *words)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert {path.name for path in tmp_path.iterdir()} <= {"a.jsonl", "there.jsonl", "c.removed.jsonl"}
    write(tmp_path, "x.removed.jsonl", TWELVE)
    itself = filter_("x.removed.jsonl", "--to", "x.jsonl", "--force")
    assert "x.removed.jsonl is read by this command" in itself.stderr


def test_a_large_file_is_filtered_in_a_few_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(1500):
            file.write(json.dumps(answer(f"Question {number}?", "Water from clouds. " * 700)) + "\n")
    tracemalloc.start()
    try:
        found = filtered(path, "--max-row", "13313", "--to", tmp_path / "b.jsonl")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < found["rows_kept"] < 1500
    assert peak < 9 << 20 < path.stat().st_size
