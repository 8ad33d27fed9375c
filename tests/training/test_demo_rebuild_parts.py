"""What the demo's rebuild hands to its children, and how it tells success from failure, without a trainer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from adapters.errors import InvalidRequest
from training.demo import DEMO, SYSTEM, Effort, check_trained, child_environment, main, publish, write_job
from training.demo_child import Child, DemoFailed, last_steps

DATA = DEMO / "data" / "customer-service.jsonl"


def child(folder: Path, seen: list[tuple[int, int]]) -> Child:
    return Child(folder, {}, lambda done, in_all: seen.append((done, in_all)))


def test_a_job_trains_what_will_be_served(tmp_path: Path) -> None:
    settings = yaml.safe_load(write_job(tmp_path / "job", DATA, DEMO / "base", Effort()).read_text(encoding="utf-8"))
    assert settings["default_system"] == SYSTEM
    assert (settings["lora_rank"], settings["template"], settings["num_train_epochs"]) == (8, "qwen", 150)
    description = json.loads((tmp_path / "job" / "dataset_info.json").read_text(encoding="utf-8"))["demo"]
    assert description["formatting"] == "sharegpt"
    assert (tmp_path / "job" / description["file_name"]).read_bytes() == DATA.read_bytes()


def test_a_path_with_a_space_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="TMPDIR"):
        write_job(tmp_path / "a job", DATA, tmp_path, Effort())


def test_children_get_no_secrets_and_no_launcher_switches(tmp_path: Path) -> None:
    outer = {"PATH": "/bin", "LANG": "C.UTF-8", "LORAGATE_ADMIN_KEY": "secret", "USE_V1": "1", "USE_RAY": "1"}
    inner = child_environment(tmp_path / "bin" / "python", tmp_path, outer)
    assert "secret" not in inner.values()
    assert not {"USE_V1", "USE_RAY", "LORAGATE_ADMIN_KEY"} & set(inner)
    assert inner["PATH"].split(":")[0] == str(tmp_path / "bin")


def test_progress_of_a_child_is_seen(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    child(tmp_path, seen).run([sys.executable, "-c", 'print(\'{"step": 3, "steps": 9}\')'])
    assert seen[-1] == (3, 9)


def test_an_interrupted_rebuild_leaves_no_child(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def interrupt(done: int, in_all: int) -> None:
        seen.append((done, in_all))
        raise KeyboardInterrupt

    talk = 'import os, time; print(\'{"step": %d, "steps": 0}\' % os.getpid(), flush=True); time.sleep(100)'
    with pytest.raises(KeyboardInterrupt):
        Child(tmp_path, {}, interrupt).run([sys.executable, "-c", talk])
    assert not psutil.pid_exists(seen[0][0])


def test_a_half_written_line_is_not_progress(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"current_steps": 4, "total_steps": 9}\n{not json}\n{"current_steps": 5, "tot', encoding="utf-8")
    assert last_steps(log) == (4, 9)


def test_a_failing_child_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match=r"exit code 3.*no such model"):
        child(tmp_path, []).run([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"])


def test_exit_code_zero_is_not_success(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    state = tmp_path / "out" / "trainer_state.json"
    state.write_text('{"global_step": 41, "max_steps": 450}', encoding="utf-8")
    with pytest.raises(DemoFailed, match="41 of 450"):
        check_trained(tmp_path)
    state.write_text('{"global_step": 450, "max_steps": 450}', encoding="utf-8")
    check_trained(tmp_path)


def test_publishing_replaces_the_old_and_is_readable_by_all(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "out" / "base"
    made.mkdir()
    (made / "weights").write_bytes(b"new")
    (made / "weights").chmod(0o600)
    target.mkdir(parents=True)
    (target / "stale").write_bytes(b"old")
    publish(made, target)
    assert [file.name for file in target.iterdir()] == ["weights"]
    assert (target / "weights").stat().st_mode & 0o777 == 0o644
    assert [folder.name for folder in target.parent.iterdir()] == ["base"]


def test_an_interpreter_without_llamafactory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training-python", str(tmp_path / "python"), "--out", str(tmp_path / "out")]) == 1
    assert "llamafactory-cli" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
