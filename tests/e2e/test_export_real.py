"""Real exports and reruns: a merge that is what it should be, the same bytes again, the first step that differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.adapters import without_effect
from training import lineage
from training.demo import DEMO, QUICK, recipe, write_job
from training.digests import Digests
from training.export.merge import NotMerged, merge
from training.interpreter import Interpreter
from training.types import Job, JobState

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
ADAPTER = DEMO / "adapters" / "customer-service"
STEPS = 6
COMMAND = "from gateway.cli import COMMANDS, main; COMMANDS['rerun'] = ('gateway.cli.rerun', 'rerun', ''); main()"


def test_a_merged_model_is_the_adapter_on_its_base(training_python: Path, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []

    def show(done: int, in_all: int) -> None:
        said.append((done, in_all))

    made = merge(Interpreter(training_python), DEMO / "base", ADAPTER, tmp_path / "merged", show=show)
    assert (made.stored, made.precision) == ("bfloat16", "float32")
    assert made.modules == made.changed == 28, "seven linear modules in each of four layers, and nothing else"
    assert made.off <= made.tolerance < made.adapter_effect
    assert made.same_choice > 0.9
    assert said[-1][1] == 6
    here = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {file.name for file in (DEMO / "base").iterdir()} <= here
    assert (tmp_path / "merged" / "config.json").read_bytes() == (DEMO / "base" / "config.json").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["merged"], "nothing is left of the work"


def test_an_adapter_that_changes_nothing_is_not_merged(training_python: Path, tmp_path: Path) -> None:
    idle = without_effect(ADAPTER, tmp_path / "idle")
    with pytest.raises(NotMerged, match="left the base's weights as they were"):
        merge(Interpreter(training_python), DEMO / "base", idle, tmp_path / "merged")
    assert [file.name for file in tmp_path.iterdir()] == ["idle"]


@pytest.fixture(scope="module")
def job(training_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of a few steps, with its manifest."""
    folder = tmp_path_factory.mktemp("data") / "training" / "jobs" / "ftjob-first"
    laid = write_job(folder / "data", DEMO / "data" / "customer-service.jsonl", DEMO / "base", QUICK).parent
    settings = recipe(laid, laid / "base", QUICK) | {
        "output_dir": str(folder / "out"),
        "max_steps": STEPS,
        "logging_steps": 1,
    }
    (laid / "train.yaml").unlink()
    (folder / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    python = Interpreter(training_python)
    python.run([python.llamafactory, "train", str(folder / "train.yaml")], folder)
    adapter = folder / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(folder / "out" / name, adapter / name)
    made = Job("ftjob-first", None, "customer-service", JobState.SUCCEEDED, {"name": "customer-service"}, time.time())
    settled = {"base": "demo-base", "steps": STEPS, "device": "cpu", "served": "adapter"}
    digests = Digests(folder.parents[1] / "digests.json")
    document = lineage.manifest(
        made, folder, settled, trainer=python.facts(), digests=digests, at=time.time(), adapter=adapter
    )
    lineage.write(folder, document)
    return folder


def rerun(python: Path, data: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """The command as a process: exit code, document, stderr."""
    environ = {**os.environ, "LORAGATE_HOME": str(data), "LORAGATE_TRAINING_PYTHON": str(python)}
    argv = [sys.executable, "-c", COMMAND, "rerun", *words, "--json"]
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_rerun_gives_the_same_bytes(training_python: Path, job: Path) -> None:
    document = lineage.read(job)
    assert document is not None
    assert [row[0] for row in document["log"]["losses"]] == list(range(1, STEPS + 1))
    assert document["packages"]["llamafactory"]
    assert str(job) not in json.dumps(document), "no path of this machine travels with a version"
    code, answer, stderr = rerun(training_python, job.parents[2], "ftjob-first", "--verify")
    assert (code, answer["verdict"]["equal"]) == (0, True), (answer, stderr)
    assert answer["verdict"]["compared"] == STEPS
    assert answer["verdict"]["changed"] == []
    assert [each.name for each in (job.parents[1]).iterdir() if each.name.startswith("rerun-")] == []


def test_a_changed_row_is_found_at_its_step(training_python: Path, job: Path, tmp_path: Path) -> None:
    other = tmp_path / "jobs" / "ftjob-changed"
    shutil.copytree(job, other)
    rows = (other / "data" / "data.jsonl").read_text(encoding="utf-8").splitlines()
    changed = json.loads(rows[5])
    changed["messages"][-1]["content"] = "Ask somebody else."
    rows[5] = json.dumps(changed, ensure_ascii=False)
    (other / "data" / "data.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    code, answer, _ = rerun(training_python, tmp_path, str(other), "--verify")
    assert (code, "not be the same training: data.data.jsonl" in answer["error"]["message"]) == (1, True)
    code, answer, _ = rerun(training_python, tmp_path, str(other), "--verify", "--anyway")
    verdict = answer["verdict"]
    assert (code, verdict["equal"], verdict["first"]["figure"]) == (1, False, "loss")
    assert 1 <= verdict["first"]["step"] <= 3, "three steps read all 24 rows"
    assert f"The first step that differs is {verdict['first']['step']}" in answer["error"]["message"]
    assert "data.data.jsonl" in answer["error"]["message"]
