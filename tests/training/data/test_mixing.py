"""Several files become one: which rows are taken, by whom they were, and that a recipe takes the same ones."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import main
from tests.training.data.corpus import TWELVE, chat, good, lines, parquet, write
from training.data.check import check
from training.data.mixing import amount, taken, within
from training.data.reading import open_data
from training.data.row import Row
from training.data.tokens import Tokenizer
from training.data.writing import write as write_rows
from training.demo import DEMO
from training.gathering import gather
from training.recipe import parse

PAIR = {"prompt": "Rain?", "chosen": "Water.", "rejected": "Fire."}


def mix(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["datasets", "mix", *map(str, words)])


def mixed(*words: str | Path) -> dict[str, object]:
    result = mix(*words, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(path: Path) -> list[Row]:
    rows = list(open_data(path).rows())
    assert all(isinstance(row, Row) for row in rows), rows
    return [replace(row, number=0) for row in rows if isinstance(row, Row)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write(tmp_path, "shop.jsonl", lines(*(good(n) for n in range(10))))


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    rows = "".join(f"问题 {n}？,答案 {n}。\n" for n in range(20))
    return write(tmp_path, "faq.csv", f"问题,答案\n{rows}".encode())


# how many, and which


@given(
    count=st.integers(0, 60),
    weight=st.sampled_from([0.1, 0.3, 0.5, 1, 1.7, 2, 3.5]),
    cap=st.none() | st.integers(1, 90),
    seed=st.integers(0, 5),
)
def test_each_row_is_taken_as_often_as_any_other_or_once_more(
    count: int, weight: float, cap: int | None, seed: int
) -> None:
    rows = [Row(number, ()) for number in range(1, count + 1)]
    wanted = amount(count, weight, cap)
    drawn = list(taken(rows, count, wanted, seed))
    assert drawn == list(taken(rows, count, wanted, seed))
    assert len(drawn) == wanted == min(int(count * weight + 1e-9), wanted if cap is None else cap)
    often = Counter(row.number for row in drawn)
    assert not rows or max(often[row.number] for row in rows) - min(often[row.number] for row in rows) <= 1
    assert [row.number for row in drawn] == sorted(row.number for row in drawn)


def test_every_row_is_drawn_by_some_seeds_and_by_about_as_many() -> None:
    rows = [Row(number, ()) for number in range(1, 41)]
    often = Counter(row.number for seed in range(400) for row in taken(rows, 40, 10, seed))
    assert (min(often.values()) > 60, max(often.values()) < 145, sum(often.values())) == (True, True, 4000)


@given(st.lists(st.integers(0, 50), max_size=6), st.none() | st.integers(1, 200))
def test_amounts_fit_in_proportion(amounts: list[int], most: int | None) -> None:
    fitted = within(amounts, most)
    assert sum(fitted) == (sum(amounts) if most is None else min(most, sum(amounts)))
    scale = sum(fitted) / sum(amounts) if sum(amounts) else 0
    assert all(abs(each - before * scale) < 1 for each, before in zip(fitted, amounts, strict=True))


# the command


def test_each_row_tells_its_source(shop: Path, faq: Path, tmp_path: Path) -> None:
    to = tmp_path / "mixed.jsonl"
    found = mixed(shop, faq, "--weight", "shop=2", "--cap", "faq=5", "--to", to)
    assert (found["rows"], found["removed"], found["removed_file"]) == (25, 0, None)
    assert isinstance(found["sources"], list)
    shown = [(each["source"], each["rows_in"], each["rows_taken"], each["share"]) for each in found["sources"]]
    assert shown == [("shop", 10, 20, 0.8), ("faq", 20, 5, 0.2)]
    rows = lines_of(to)
    assert Counter(row["source"] for row in rows) == {"shop": 20, "faq": 5}
    faqs = [row for row in rows if row["source"] == "faq"]
    read = {row.number: row for row in open_data(faq).rows() if isinstance(row, Row)}
    for row in faqs:
        assert isinstance(row["source_row"], int)
        assert row["messages"] == [
            {"role": turn.role, "content": turn.content} for turn in read[row["source_row"]].turns
        ]
    assert [row["source_row"] for row in faqs] != [2, 3, 4, 5, 6], "not merely the first"
    assert check(open_data(to), near_rows=0).rows_kept == 25
    first = to.read_bytes()
    assert mixed(shop, faq, "--weight", "shop=2", "--cap", "faq=5", "--to", to, "--force")["rows"] == 25
    assert to.read_bytes() == first
    mixed(shop, faq, "--weight", "shop=2", "--cap", "faq=5", "--to", to, "--force", "--seed", "7")
    assert to.read_bytes() != first


def test_a_recipe_trains_on_the_same_rows(shop: Path, faq: Path, tmp_path: Path) -> None:
    train = [{"file": str(shop), "weight": 1.5}, {"file": str(faq), "weight": 0.5, "cap": 6}]
    weighted = chat(("user", "And?"), ("assistant", "No."), ("user", "So?"), ("assistant", "Yes."))
    weighted["messages"][1]["weight"] = 0
    shop.write_bytes(shop.read_bytes() + lines(weighted, {"messages": []}))  # weights stay, and broken rows count not
    to = tmp_path / "mixed.jsonl"
    options = ("--weight", "shop=1.5", "--weight", "faq=0.5", "--cap", "faq=6", "--max-dropped", "0.1")
    mixed(shop, faq, *options, "--seed", "9", "--to", to)
    tokens = Tokenizer.of(DEMO / "base")
    for share in (None, 0.3):
        data = {"validation": share, "max_dropped": 0.1}
        asked = parse({"name": "a", "data": {"train": train, **data}, "training": {"seed": 9}})
        alone = parse({"name": "a", "data": {"train": str(to), **data}, "training": {"seed": 9}})
        ours, theirs = gather(alone, tokens), gather(asked, tokens)
        assert ours.mask_history is theirs.mask_history is True
        for mine, other in ((ours.trained(), theirs.trained()), (ours.held_out(), theirs.held_out())):
            assert [replace(row, number=0) for row in mine] == [replace(row, number=0) for row in other]
        files = [
            write_rows(each.trained(), tmp_path, name, mask_history=True) for name, each in (("a", ours), ("b", theirs))
        ]
        assert files[0].digest == files[1].digest
    assert {row["source"] for row in lines_of(tmp_path / "mixed.removed.jsonl")} == {"shop"}


def test_files_of_one_name_share_a_cap(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a = write(tmp_path / "a", "train.jsonl", lines(*(good(n) for n in range(30))))
    b = write(tmp_path / "b", "train.jsonl", lines(*(good(n) for n in range(30, 40))))
    to = tmp_path / "m.jsonl"
    found = mixed(f"chats={a}", f"chats={b}", "--cap", "chats=8", "--to", to)
    assert isinstance(found["sources"], list)
    assert [each["rows_taken"] for each in found["sources"]] == [6, 2]
    result = mix(a, b, "--to", to)
    assert (result.exit_code, "Several files would be called 'train'" in result.stderr) == (2, True)
    found = mixed(f"old={a}", f"new={b}", "--rows", "10", "--to", to, "--force")
    assert isinstance(found["sources"], list)
    assert [each["rows_taken"] for each in found["sources"]] == [8, 2]


def test_columns_and_forms_are_of_a_source(tmp_path: Path) -> None:
    one = write(tmp_path, "one.csv", b"frage,antwort\nWas ist Regen?,Wasser.\n")
    assert mixed(f"客服={one}", *("--columns", "客服:instruction=frage,output=antwort"), "--to", tmp_path / "o.jsonl")
    two = write(tmp_path, "t=w:o.csv", b"ask me,tell\nWas ist Schnee?,Eis.\n")
    columns = ("--columns", "one:instruction=frage,output=antwort", "--columns", "two:instruction=ask me")
    to = tmp_path / "m.jsonl"
    found = mixed(one, f"two={two}", *columns, "--columns", "two:output=tell", "--form", "one=qa", "--to", to)
    assert found["rows"] == 2
    assert [row.question for row in rows_of(to)] == ["Was ist Regen?", "Was ist Schnee?"]
    assert mixed(two, "--columns", "instruction=ask me,output=tell", "--to", tmp_path / "n.jsonl")["rows"] == 1


def test_every_kind_of_rows_stays_what_it_is(tmp_path: Path) -> None:
    pairs = parquet(tmp_path / "pairs.parquet", [{**PAIR, "prompt": f"Rain {n}?"} for n in range(3)])
    liked = write(
        tmp_path,
        "liked.json",
        json.dumps([{"prompt": f"R{n}?", "completion": "W.", "label": n < 2} for n in range(3)]).encode(),
    )
    for path, trains in ((pairs, "preference"), (liked, "kto")):
        to = tmp_path / f"{trains}.jsonl"
        assert mixed(path, "--weight", f"{path.stem}=2", "--to", to)["rows"] == 6
        assert open_data(to).trains == trains
        once = [replace(row, number=0) for row in open_data(path).rows() if isinstance(row, Row)]
        assert rows_of(to) == [row for row in once for _ in range(2)]
    result = mix(pairs, liked, "--to", tmp_path / "no.jsonl")
    assert (result.exit_code, "Mix one kind at a time" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--weight", "shop=0"), 2, "above 0"),
        (("--weight", "shop=-1"), 2, "above 0"),
        (("--weight", "shop=nan"), 2, "above 0"),
        (("--weight", "shop=1e9"), 2, "at most 1000"),
        (("--weight", "2"), 2, "NAME=NUMBER"),
        (("--weight", "shp=2"), 2, "'shp', and the sources are shop"),
        (("--cap", "shop=2.5"), 2, "whole number"),
        (("--cap", "shop=0"), 2, "whole number"),
        (("--columns", "shop:question"), 2, "instruction=question"),
        (("--weight", "shop=0.01"), 1, "No row is taken"),
        (("--to", "m.csv"), 1, "ends with .jsonl"),
        (("--to", "shop.jsonl", "--force"), 1, "is read by this command"),
        (("--to", "there.jsonl"), 1, "is there already"),
        (("shop.jsonl",), 2, "named twice"),
        (("empty.jsonl",), 1, "empty.jsonl is empty"),
        (("missing.jsonl",), 1, "no file missing.jsonl"),
        (("bad.jsonl",), 1, "13 of 15 rows of bad.jsonl"),
        ((".",), 2, "is a folder"),
    ],
)
def test_what_cannot_be_mixed_leaves_no_file(
    words: tuple[str, ...], code: int, said: str, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.parent)
    write(shop.parent, "empty.jsonl", b"")
    write(shop.parent, "bad.jsonl", TWELVE)
    write(shop.parent, "there.jsonl", b"mine")
    before = {path.name: path.read_bytes() for path in shop.parent.iterdir()}
    result = mix("shop.jsonl", *(() if "--to" in words else ("--to", "m.jsonl")), *words)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert {path.name: path.read_bytes() for path in shop.parent.iterdir()} == before


def test_a_large_file_is_mixed_in_a_few_megabytes(shop: Path, tmp_path: Path) -> None:
    mixed(shop, "--to", tmp_path / "small.jsonl")  # the model that names languages is loaded once
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(700):
            file.write(
                json.dumps(chat(("user", f"Question {number}?"), ("assistant", "Water from clouds. " * 700))) + "\n"
            )
    assert path.stat().st_size > 9_000_000
    tracemalloc.start()
    try:
        assert mixed(path, "--weight", "large=1.5", "--to", tmp_path / "m.jsonl")["rows"] == 1050
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
