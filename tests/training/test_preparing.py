"""The folder of a job before its run, made from real files and the demo's base; and the table of a run's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from training.data.row import Row
from training.errors import DataRejected, NotServable, TooFewExamples
from training.facts import Facts, Machine
from training.pipeline import _enough
from training.preparing import DATA, Prepared, prepare, rows_of
from training.publishing import figures
from training.recipe import parse

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
ROWS = DEMO / "data" / "customer-service.jsonl"


@pytest.fixture
def facts() -> Facts:
    return Facts.look("demo-base", DEMO / "base", 16, Machine(cpus=2, memory_gb=16.0))


def prepared(folder: Path, facts: Facts, **changes: object) -> Prepared:
    recipe = parse({"name": "support", "data": {"train": str(ROWS), "validation": 0.25}, **changes})
    return prepare(recipe, facts, folder, Path)


def test_everything_that_the_trainer_reads_is_there(tmp_path: Path, facts: Facts) -> None:
    made = prepared(tmp_path, facts)
    settings = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert (settings["dataset"], settings["eval_dataset"]) == ("train", "valid")
    assert Path(settings["output_dir"]) == tmp_path / "out"
    base = Path(settings["model_name_or_path"])
    assert json.loads((base / "config.json").read_text())["dtype"] == "float32"  # the demo's is stored in bfloat16
    assert (base / "model.safetensors").samefile(DEMO / "base" / "model.safetensors")
    described = json.loads((tmp_path / DATA / "dataset_info.json").read_text())
    assert {name: each["formatting"] for name, each in described.items()} == {"train": "sharegpt", "valid": "sharegpt"}
    train, valid = rows_of(tmp_path / DATA / "train.jsonl"), rows_of(tmp_path / DATA / "valid.jsonl")
    assert (len(train), len(valid)) == (made.settled.rows, made.settled.valid_rows)
    assert len(train) + len(valid) == 24
    assert not {row.question for row in train} & {row.question for row in valid}


def test_begun_again_it_writes_the_same_again(tmp_path: Path, facts: Facts) -> None:
    first, second = prepared(tmp_path / "a", facts), prepared(tmp_path / "b", facts)
    assert [each.digest for each in first.written] == [each.digest for each in second.written]
    assert first.settled == second.settled
    again = prepared(tmp_path / "a", facts, data={"train": str(ROWS)})
    assert len(again.written) == 1
    assert not (tmp_path / "a" / DATA / "valid.jsonl").exists(), "rows of another recipe would be measured"


def test_rows_that_must_not_get_worse_are_copied(tmp_path: Path, facts: Facts) -> None:
    guarded = tmp_path / "guarded.jsonl"
    guarded.write_text("".join(ROWS.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    prepared(tmp_path / "job", facts, gate={"no_regression_on": str(guarded)})
    guarded.unlink()
    kept = rows_of(tmp_path / "job" / DATA / "guarded.jsonl")
    assert len(kept) == 3
    assert all(isinstance(row, Row) for row in kept)
    with pytest.raises(DataRejected, match="no file"):
        prepared(tmp_path / "job", facts, gate={"no_regression_on": str(guarded)})


def test_what_cannot_be_served_leaves_no_settings_file(tmp_path: Path, facts: Facts) -> None:
    with pytest.raises(NotServable, match="rank"):
        prepared(tmp_path, facts, method={"rank": 64})
    assert not (tmp_path / "train.yaml").exists()


def test_openais_jobs_need_ten_examples(tmp_path: Path, facts: Facts) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(ROWS.read_text(encoding="utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    made = prepared(tmp_path / "job", facts, data={"train": str(few)})
    with pytest.raises(TooFewExamples) as refused:
        _enough(made)
    assert refused.value.message == "Training file has 5 example(s), but must have at least 10 examples"
    assert (refused.value.code, refused.value.param) == ("invalid_n_examples", "training_file")
    _enough(prepared(tmp_path / "job", facts))


def test_the_figures_of_every_step_are_one_table(tmp_path: Path) -> None:
    history = [
        {"step": 2, "loss": 1.5, "learning_rate": 0.1},
        {"step": 4, "loss": 0.5},
        {"step": 4, "eval_loss": 0.75, "eval_accuracy": 0.9},
        {"step": 4, "train_runtime": 3.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert figures(tmp_path).decode().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "2,1.5,,,",
        "4,0.5,,0.75,0.9",
    ]
    assert figures(tmp_path / "nowhere").decode().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    ]
