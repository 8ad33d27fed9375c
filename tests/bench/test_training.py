"""The bench of a training run: both ways run to the end, and the report says what the watching costs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.report import Run, render
from bench.training import RunFailed, training

TRAINER = Path(__file__).parents[1] / "training" / "fake_trainer.py"
FAKE = f"""
import json, pathlib, yaml
given = pathlib.Path(sys.argv[2])
given.with_suffix(".json").write_text(json.dumps(yaml.safe_load(given.read_text())))
sys.argv[1:] = [str(given.with_suffix(".json"))]
runpy.run_path({str(TRAINER)!r}, run_name="__main__")
"""


def environment(folder: Path, program: str) -> Path:
    """An environment whose llamafactory-cli is `program`; its interpreter."""
    folder.mkdir()
    cli = folder / "llamafactory-cli"
    cli.write_text(f"#!{sys.executable}\nimport runpy, sys\n{program}\n")
    cli.chmod(0o755)
    return folder / "python"


def test_both_ways_run_to_the_end_and_are_compared(tmp_path: Path) -> None:
    python = environment(tmp_path / "env", FAKE)
    said: list[str] = []
    found = training(python, tmp_path, rounds=1, steps=4, say=said.append)
    assert len(said) == 2
    for turns in found.samples.values():
        assert turns[0]["cpu_s"] > 0
        assert turns[0]["wall_s"] > 0
    assert 0 < found.samples["watched"][0]["own_s"] < found.samples["watched"][0]["cpu_s"]
    text = render([Run("training", "now", "here", asdict(found))])
    assert "| `llamafactory-cli train` |" in text
    assert "training as a job ÷ bare `llamafactory-cli`, CPU" in text


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    python = environment(tmp_path / "env", "sys.exit('no disk')")
    with pytest.raises(RunFailed, match="ended with 1"):
        training(python, tmp_path, rounds=1, steps=4, say=print)
