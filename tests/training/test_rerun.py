"""Reruns over a fake trainer: equal ingredients, equal bytes; otherwise the step, and what is not as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.errors import InvalidRequest
from tests.training.fake_environment import fake_environment
from tests.training.finished_job import Finished, finished
from training import lineage, rerun
from training.digests import Digests
from training.errors import TrainingFailed
from training.interpreter import ChildFailed, Interpreter
from training.rerun import Verdict


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return fake_environment(tmp_path / "environment")


@pytest.fixture
def done(tmp_path: Path, python: Path) -> Finished:
    return finished(tmp_path / "data", python)


def again(done: Finished, fresh: Path, python: Path | None = None, **changes: Any) -> Verdict:
    """As the command does it, without its refusal."""
    manifest = {**(lineage.read(done.folder) or {}), **changes}
    interpreter = Interpreter(python or done.python)
    found = rerun.changed(manifest, done.folder, done.base, interpreter.facts(), Digests(None))
    settings = rerun.prepare(manifest, done.folder, fresh, done.base)
    said: list[tuple[int, int]] = []
    rerun.train(interpreter, manifest, settings, lambda done, in_all: said.append((done, in_all)))
    return rerun.judge(manifest, fresh / "out", found)


def test_the_same_again_is_the_same_bytes(done: Finished, tmp_path: Path) -> None:
    verdict = again(done, tmp_path / "fresh")
    assert (verdict.equal, verdict.compared, verdict.first, verdict.changed) == (True, 6, None, ())
    assert "byte-equal" in verdict.sentence
    asked = yaml.safe_load((tmp_path / "fresh" / "train.yaml").read_text())
    assert asked["report_to"] == "none", "no tracker hears of it twice"
    assert asked["dataset_dir"] == str(tmp_path / "fresh" / "data")
    json.dumps(verdict.document())


def test_a_changed_row_is_seen_at_its_step(done: Finished, tmp_path: Path) -> None:
    file = done.folder / "data" / "train.jsonl"
    rows = file.read_text().splitlines()
    rows[3] = rows[3].replace("question", "Question")
    file.write_text("\n".join(rows) + "\n")
    verdict = again(done, tmp_path / "fresh")
    assert verdict.first is not None
    assert (verdict.equal, verdict.first.step, verdict.first.figure) == (False, 4, "loss")
    assert verdict.sentence.startswith("The weights differ. The first step that differs is 4: loss 0.")
    assert "Not as it was: data.train.jsonl.sha256" in verdict.sentence
    manifest = lineage.read(done.folder) or {}
    found = rerun.changed(manifest, done.folder, done.base, Interpreter(done.python).facts(), Digests(None))
    with pytest.raises(InvalidRequest, match=r"not be the same training: data\.train\.jsonl\.sha256.*--anyway"):
        rerun.refuse(found)


def test_another_base_is_refused_and_other_packages_are_told(done: Finished, tmp_path: Path) -> None:
    manifest = lineage.read(done.folder) or {}
    other = fake_environment(tmp_path / "other", packages={"torch": "2.12.0"}, threads=8)
    facts = Interpreter(other).facts()
    found = rerun.changed(manifest, done.folder, done.base, facts, Digests(None))
    rerun.refuse(found)
    assert {each.what for each in found} >= {"packages.torch", "environment.threads"}
    (done.base / "model.safetensors").write_bytes(b"other")
    found = rerun.changed(manifest, done.folder, done.base, facts, Digests(None))
    with pytest.raises(InvalidRequest, match=r"base\.files\.model\.safetensors"):
        rerun.refuse(found)


def test_as_many_threads_as_then_give_the_same_bytes(done: Finished, tmp_path: Path) -> None:
    more = fake_environment(tmp_path / "other", threads=8)
    verdict = again(done, tmp_path / "fresh", more)
    assert verdict.equal, verdict
    assert verdict.changed == ("environment.threads: 2 then, 8 now",)


def test_gpus_that_are_not_here_are_said(done: Finished) -> None:
    manifest = lineage.read(done.folder) or {}
    assert rerun.devices(manifest) == ""
    rerun.check_devices(manifest, {"gpus": []})
    on_two = {**manifest, "environment": {**manifest["environment"], "device": "gpu", "count": 2}}
    assert rerun.devices(on_two) == "0,1"
    rerun.check_devices(on_two, {"gpus": ["H200", "H200"]})
    with pytest.raises(InvalidRequest, match="trained on 2 GPU, and the training environment sees 1"):
        rerun.check_devices(on_two, {"gpus": ["H200"]})


def test_weights_that_differ_behind_equal_figures_are_told(done: Finished, tmp_path: Path) -> None:
    verdict = again(done, tmp_path / "fresh", weights={"adapter_model.safetensors": "0" * 64})
    assert (verdict.equal, verdict.first) == (False, None)
    assert "up to step 6" in verdict.sentence
    nothing = again(done, tmp_path / "more", weights={"x": "0"}, log={"losses": []})
    assert nothing.first is not None, "steps that one run logged and the other did not"


def test_a_run_that_stops_early_or_fails_is_no_rerun(done: Finished, tmp_path: Path) -> None:
    manifest = lineage.read(done.folder) or {}
    with pytest.raises(TrainingFailed, match="stopped at step 2 of 6"):
        again(done, tmp_path / "fresh", settings={**manifest["settings"], "stop_at": 2})
    with pytest.raises(ChildFailed, match="llamafactory-cli ended with exit code 1"):
        again(done, tmp_path / "more", settings={**manifest["settings"], "max_steps": "many"})


def test_data_that_is_gone_and_odd_folders_are_refused(done: Finished, tmp_path: Path) -> None:
    manifest = lineage.read(done.folder) or {}
    with pytest.raises(InvalidRequest, match="has a space"):
        rerun.prepare(manifest, done.folder, tmp_path / "a b", done.base)
    (done.folder / "data" / "dataset_info.json").unlink()
    with pytest.raises(InvalidRequest, match="is not on this machine any more"):
        rerun.prepare(manifest, done.folder, tmp_path / "fresh", done.base)
