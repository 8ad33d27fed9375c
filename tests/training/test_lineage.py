"""Manifests: what is in one, that it may travel, and what two of them say of each other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapters import intake
from adapters.errors import InvalidRequest
from tests.training.fake_environment import asked, fake_environment
from tests.training.finished_job import Finished, finished
from training import lineage
from training.digests import Digests, hashed
from training.interpreter import ChildFailed, Interpreter


@pytest.fixture
def done(tmp_path: Path) -> Finished:
    return finished(tmp_path / "data", fake_environment(tmp_path / "environment"))


def test_a_manifest_says_what_went_in_and_what_came_out(done: Finished) -> None:
    made = lineage.read(done.folder)
    assert made is not None
    checked = intake.check(done.folder / "adapter", None, 16)
    assert (made["digest"], made["version"], made["rank"]) == (checked.digest, checked.version, 4)
    train = hashed(done.folder / "data" / "train.jsonl")
    assert made["data"]["train.jsonl"] == {"sha256": train.sha256, "bytes": train.bytes, "rows": 6}
    assert set(made["data"]) == {"train.jsonl", "dataset_info.json"}
    assert made["settings"] == {"stage": "sft", "learning_rate": 0.001, "seed": 7, "report_to": "wandb"}
    assert set(made["base"]["files"]) == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert made["packages"]["torch"] == "2.11.0"
    assert made["environment"]["instructions"] == "AVX2"
    assert (made["seed"], made["split"], made["plan"]["steps"]) == (7, {"validation": 0.1, "seed": 7}, 6)
    assert [row[0] for row in made["log"]["losses"]] == [1, 2, 3, 4, 5, 6]
    weights = hashed(done.folder / "out" / "adapter_model.safetensors").sha256
    assert made["weights"] == {"adapter_model.safetensors": weights}
    assert made["evaluation"]["summary"]["scores"]["candidate"] == {"exact_match": 0.75}
    assert made["evaluation"]["summary"]["compared_rows"] == 8
    assert (made["created"], made["parent"], "proof" in made) == (1_800_000_000, None, False)
    more = done.manifest(parent="customer-service@0123456789ab", proof=[1], evaluation={"verdict": "yes"})
    assert (more["parent"], more["proof"], more["evaluation"]["summary"]) == (
        "customer-service@0123456789ab",
        [1],
        {"verdict": "yes"},
    )


def test_nothing_travels_that_only_this_machine_should_know(done: Finished) -> None:
    text = (done.folder / lineage.FILE).read_text()
    assert str(done.folder.parents[3]) not in text
    for word in ("/home", "ada:", "secret", "sk-1", "?k="):
        assert word not in text
    recipe = json.loads(text)["recipe"]
    assert recipe["data"]["train"] == [{"file": "rows.csv"}]
    assert recipe["gate"]["judge"] == {"url": "https://judge.example/v1", "model": "m"}


def test_what_two_manifests_say_of_each_other(done: Finished) -> None:
    before = done.manifest()
    assert lineage.differences(before, done.manifest()) == []
    (done.folder / "data" / "train.jsonl").write_text("{}\n")
    (done.base / "chat_template.jinja").unlink()
    after = done.manifest()
    after["packages"]["torch"] = "2.12.0"
    found = lineage.differences(before, after)
    assert [each.what for each in found] == [
        "data.train.jsonl.bytes",
        "data.train.jsonl.rows",
        "data.train.jsonl.sha256",
        "base.files.chat_template.jinja",
        "packages.torch",
    ]
    assert found[-1].sentence == "packages.torch: 2.11.0 then, 2.12.0 now"
    assert found[3].sentence.endswith("then, nothing now")


def test_numbers_that_are_none_are_still_json(tmp_path: Path) -> None:
    history = [
        {"step": 1, "loss": 0.1234567890123456, "grad_norm": float("nan")},
        {"step": 2, "loss": float("inf")},
        {"step": 2, "eval_loss": 0.5},
        {"step": 2, "train_runtime": 3.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = lineage.losses(tmp_path)
    assert found == [[1, 0.1234567890123456, "nan", None], [2, "inf", None, 0.5]]
    lineage.write(tmp_path, {"log": found})
    assert lineage.read(tmp_path) == {"log": found}
    assert lineage.losses(tmp_path / "elsewhere") == []


def test_a_long_log_is_thinned(tmp_path: Path) -> None:
    history = [{"step": step, "loss": 1.0} for step in range(1, 25_001)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = lineage.losses(tmp_path)
    assert (len(found), found[0][0], found[1][0]) == (8334, 1, 4)


def test_what_others_say_about_a_version_is_no_manifest(done: Finished) -> None:
    ours = done.manifest()
    assert lineage.is_manifest(ours)
    for key, value in (
        ("schema", 2),
        ("base", "a"),
        ("base", {"files": []}),
        ("data", {"x": 1}),
        ("log", {"losses": [1]}),
    ):
        assert not lineage.is_manifest({**ours, key: value}), (key, value)


def test_a_folder_without_settings_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"there is no train\.yaml"):
        lineage.read_settings(tmp_path)
    assert lineage.read(tmp_path) is None


def test_large_files_are_hashed_once(tmp_path: Path) -> None:
    large, kept = tmp_path / "model.safetensors", tmp_path / "kept" / "digests.json"
    large.write_bytes(b"one")
    first = Digests(kept).of(large)
    at = large.stat().st_mtime_ns
    large.write_bytes(b"two")
    os.utime(large, ns=(at, at))
    assert Digests(kept).of(large) == first, "the same size and time: not read again"
    assert Digests(None).of(large) == hashed(large).sha256 != first
    os.utime(large, ns=(at, at + 1))
    assert Digests(kept).of(large) == hashed(large).sha256
    kept.write_text("no json")
    assert Digests(kept).of(large) == hashed(large).sha256


def test_an_interpreter_is_asked_once(tmp_path: Path) -> None:
    python = fake_environment(tmp_path / "environment")
    interpreter = Interpreter(python)
    assert interpreter.facts() == interpreter.facts()
    assert asked(python) == 1


def test_the_real_child_says_what_this_environment_has(tmp_path: Path) -> None:
    import sys

    facts = Interpreter(Path(sys.executable)).facts()
    assert facts["packages"]["pytest"] == pytest.__version__
    assert facts["python"].startswith("3.")


def test_no_interpreter_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="LORAGATE_TRAINING_PYTHON"):
        Interpreter(tmp_path / "python").facts()
