"""The parts of a run by themselves: log, curve, estimate, checkpoints, judgement, diagnosis, findings, GPUs, room."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from training.run import curve as drawing
from training.run import gpu, guards
from training.run.checkpoints import Found, look, newest_whole
from training.run.diagnosis import diagnose
from training.run.findings import Findings
from training.run.judgement import judge
from training.run.progress import Curve, LogReader, Point, Rate, point
from training.run.stopping import catches

SETTLED = {
    "llamafactory": {
        "per_device_train_batch_size": 8,
        "cutoff_len": 2048,
        "learning_rate": 3e-4,
        "finetuning_type": "lora",
        "save_steps": 50,
    }
}


def line(step: int, **more: object) -> bytes:
    return json.dumps({"current_steps": step, "total_steps": 100, **more}).encode() + b"\n"


def weights(file: Path) -> None:
    raw = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 8)


def checkpoint(output: Path, step: int) -> Path:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    weights(folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data", b"x" * 1000)
    state = {"global_step": step, "log_history": [{"step": step, "loss": 1.5}, {"step": step, "eval_loss": 1.7}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


class TestLog:
    def test_only_whole_lines_are_read_and_each_once(self, tmp_path: Path) -> None:
        file = tmp_path / "trainer_log.jsonl"
        reader = LogReader(file)
        assert reader.new() == []
        file.write_bytes(line(1, loss=2.0) + line(2, loss=1.9)[:-5])
        assert [record["current_steps"] for record in reader.new()] == [1]
        with file.open("ab") as more:
            more.write(line(2, loss=1.9)[-5:])
        assert [record["current_steps"] for record in reader.new()] == [2]
        assert reader.new() == []

    def test_a_line_that_a_kill_cut_short_costs_only_itself(self, tmp_path: Path) -> None:
        file = tmp_path / "trainer_log.jsonl"
        file.write_bytes(line(1, loss=2.0) + line(2, loss=1.9)[:20] + line(2, loss=1.8) + b"\xff\xfe\n" + line(3))
        assert [record["current_steps"] for record in LogReader(file).new()] == [1, 2, 3]

    def test_a_log_that_begins_anew(self, tmp_path: Path) -> None:
        file = tmp_path / "trainer_log.jsonl"
        reader = LogReader(file)
        file.write_bytes(line(1) + line(2))
        reader.new()
        file.write_bytes(line(1))
        assert len(reader.new()) == 1

    def test_points(self) -> None:
        made = point(json.loads(line(40, loss=1.5, lr=1e-4, epoch=0.5, elapsed_time="1 day, 1:00:05", total_tokens=9)))
        assert made == Point(40, 100, 0.5, 1.5, learning_rate=1e-4, tokens=9, elapsed_s=90005.0)
        assert point({"percentage": 3}) is None

    def test_the_newest_word_on_a_step_holds_and_nothing_is_lost(self) -> None:
        curve = Curve()
        curve.add(Point(1, 100, loss=2.0))
        curve.add(Point(1, 100, valid_loss=2.1))
        curve.add(Point(2, 100, loss=1.9))
        curve.add(Point(1, 100, loss=1.99))  # after a resume
        curve.learn([{"step": 1, "grad_norm": 0.7}, {"step": 9, "grad_norm": 0.1}])
        assert curve.losses() == [(1, 1.99), (2, 1.9)]
        assert curve.points()[0].valid_loss == 2.1
        assert curve.points()[0].grad_norm == 0.7

    def test_memory_is_bounded(self) -> None:
        curve = Curve()
        for step in range(1, 40_001):
            curve.add(Point(step, 40_000, loss=1.0, valid_loss=1.0 if step % 1000 == 0 else None))
        assert len(curve.points()) <= 5000
        assert len(curve.valid_losses()) == 40


class TestEstimate:
    def test_from_the_steps_between_two_readings(self) -> None:
        rate = Rate()
        rate.see(100.0, Point(10, 100, tokens=1000))
        assert rate.left_s(Point(10, 100)) is None
        rate.see(110.0, Point(15, 100, tokens=2000))
        assert (rate.step_s, rate.tokens_per_s, rate.left_s(Point(15, 100))) == (2.0, 100.0, 170.0)

    def test_right_after_a_resume(self) -> None:
        """The trainer would say 0:00:11 here: 2 s since its restart, over 40 steps."""
        rate = Rate(from_step=30)
        rate.see(5.0, Point(40, 100, elapsed_s=20.0))
        assert rate.left_s(Point(40, 100)) == 120.0

    def test_before_the_first_step_after_a_resume_the_pace_of_before_holds(self) -> None:
        assert Rate(30, before_s=1.5).left_s(Point(30, 100)) == 105.0

    def test_lines_that_were_read_at_once_are_one_reading(self) -> None:
        rate = Rate()
        for step in range(1, 50):
            rate.see(7.0, Point(step, 100, elapsed_s=float(step)))
        assert rate.step_s == 1.0


class TestCheckpoints:
    def test_a_whole_one(self, tmp_path: Path) -> None:
        found = look(checkpoint(tmp_path, 10))
        assert isinstance(found, Found)
        assert (found.step, found.figures["loss"], found.figures["eval_loss"]) == (10, 1.5, 1.7)

    @pytest.mark.parametrize(
        ("name", "cut"),
        [
            ("adapter_model.safetensors", 5),
            ("adapter_model.safetensors", None),
            ("optimizer.pt", 30),
            ("optimizer.pt", None),
            ("scheduler.pt", None),
            ("trainer_state.json", 10),
            ("trainer_state.json", None),
            ("rng_state.pth", 10),
        ],
    )
    def test_a_file_cut_short_or_missing(self, tmp_path: Path, name: str, cut: int | None) -> None:
        file = checkpoint(tmp_path, 10) / name
        if cut is None:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-cut])
        assert isinstance(look(tmp_path / "checkpoint-10"), str)

    def test_a_hole_in_the_optimizer(self, tmp_path: Path) -> None:
        file = checkpoint(tmp_path, 10) / "optimizer.pt"
        data = bytearray(file.read_bytes())
        data[100:200] = bytes(100)
        file.write_bytes(data)
        assert look(tmp_path / "checkpoint-10") == "optimizer.pt is broken"

    def test_marked_as_incomplete_or_of_another_step(self, tmp_path: Path) -> None:
        (checkpoint(tmp_path, 10) / "checkpoint-is-incomplete.txt").touch()
        checkpoint(tmp_path, 20).rename(tmp_path / "checkpoint-30")
        assert isinstance(look(tmp_path / "checkpoint-10"), str)
        assert look(tmp_path / "checkpoint-30") == "its trainer_state.json speaks of step 20"

    def test_broken_newer_ones_are_moved_aside(self, tmp_path: Path) -> None:
        output, aside = tmp_path / "out", tmp_path / "broken"
        for step in (9, 10, 100):
            checkpoint(output, step)
        for step in (10, 100):
            (output / f"checkpoint-{step}" / "scheduler.pt").unlink()
        (aside / "checkpoint-100").mkdir(parents=True)
        found, said = newest_whole(output, aside)
        assert found is not None
        assert (found.step, len(said)) == (9, 2)
        assert sorted(os.listdir(aside)) == ["checkpoint-10", "checkpoint-100", "checkpoint-100.2"]
        assert newest_whole(tmp_path / "nothing", aside) == (None, ())

    def test_deepspeed_keeps_its_own_folder(self, tmp_path: Path) -> None:
        folder = checkpoint(tmp_path, 10)
        (folder / "optimizer.pt").unlink()
        (folder / "latest").write_text("global_step10")
        assert look(folder) == "its optimizer is missing"
        (folder / "global_step10").mkdir()
        (folder / "global_step10" / "zero.pt").touch()
        assert isinstance(look(folder), Found)


class TestJudgement:
    def write(self, output: Path, step: int) -> None:
        weights(output / "adapter_model.safetensors")
        (output / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 100}))

    def test_all_steps_and_whole_weights(self, tmp_path: Path) -> None:
        self.write(tmp_path, 100)
        assert judge(tmp_path).wrong is None

    def test_early_is_whole_only_where_the_recipe_says_so(self, tmp_path: Path) -> None:
        self.write(tmp_path, 41)
        assert judge(tmp_path).wrong == "training stopped at step 41 of 100"
        assert judge(tmp_path, early_stopping=True).wrong is None

    def test_without_its_last_word_or_with_broken_weights(self, tmp_path: Path) -> None:
        assert not judge(tmp_path).ended
        self.write(tmp_path, 100)
        file = tmp_path / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        assert judge(tmp_path).wrong == "adapter_model.safetensors is broken"
        file.unlink()
        assert judge(tmp_path).wrong == "adapter_model.safetensors is missing"


class TestDiagnosis:
    @pytest.mark.parametrize(
        ("log", "code", "try_this"),
        [
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
                "out_of_gpu_memory",
                {"training.batch_size": 4},
            ),
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory",
                "out_of_memory",
                {"training.batch_size": 4},
            ),
            ("OSError: [Errno 28] No space left on device", "disk_full", {"training.save_steps": 200}),
            (
                "RuntimeError: Cannot find valid samples, check `data/README.md` for the data format.",
                "no_valid_rows",
                {},
            ),
            (
                "ValueError: Some keys are not used by the HfArgumentParser: ['lora_rnk']",
                "bad_setting",
                {},
            ),
            ("ValueError: Template qwn does not exist.", "template_unknown", {}),
            ("ModuleNotFoundError: No module named 'bitsandbytes'", "dependency_missing", {}),
            (
                "importlib.metadata.PackageNotFoundError: The 'deepspeed' distribution was not found",
                "dependency_missing",
                {},
            ),
            ("torch.distributed.DistNetworkError: EADDRINUSE, address already in use", "port_in_use", {}),
            (
                "ValueError: The dataset is not applicable in the current training stage.",
                "wrong_stage",
                {},
            ),
            (
                "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
                "diverged",
                {"training.learning_rate": 1e-4},
            ),
            ("ValueError: loss is nan", "diverged", {"training.learning_rate": 1e-4}),
            ("KeyError: 'messages'", "trainer_failed", {}),
        ],
    )
    def test_causes(self, log: str, code: str, try_this: dict[str, object]) -> None:
        text = f"Loading\nTraceback (most recent call last):\n  File x\n{log}\n 12%|##  | 3/24 [00:01<00:07]\n"
        found = diagnose(text, 1, SETTLED, 12)
        assert (found.sure, found.problem.code, dict(found.problem.try_this)) == (True, code, try_this)
        assert found.problem.message.endswith((".", "'messages'"))

    def test_names_are_in_the_sentence(self) -> None:
        said = diagnose("ValueError: Some keys are not used by the HfArgumentParser: ['lora_rnk']", 1, {})
        assert "'lora_rnk'" in said.problem.message
        assert "bitsandbytes" in diagnose("ImportError: bitsandbytes is required", 1, {}).problem.message

    def test_killed_may_be_tried_again(self) -> None:
        killed = diagnose("", -signal.SIGKILL, SETTLED, 7)
        assert (killed.sure, killed.problem.code) == (False, "killed")
        assert "signal 9" in killed.problem.message
        assert not diagnose("", None, SETTLED).sure
        assert "SIGTERM" in diagnose("", -signal.SIGTERM, SETTLED).problem.message

    def test_smaller_one_setting_after_the_other(self) -> None:
        given = {**SETTLED["llamafactory"], "per_device_train_batch_size": 1}
        assert diagnose("CUDA out of memory", 1, {"llamafactory": given}).problem.try_this == {"training.cutoff": 1024}
        given["cutoff_len"] = 512
        assert diagnose("CUDA out of memory", 1, {"llamafactory": given}).problem.try_this == {"method.tuning": "qlora"}


class TestFindings:
    def curve(self, losses: list[float], valid: dict[int, float] | None = None) -> Curve:
        curve = Curve()
        for step, loss in enumerate(losses, 1):
            curve.add(Point(step, 100, loss=loss, valid_loss=(valid or {}).get(step)))
        return curve

    def kinds(self, losses: list[float], valid: dict[int, float] | None = None, steps: int | None = None) -> list[str]:
        curve = self.curve(losses, valid)
        return [each.kind for each in Findings().look(curve, len(losses), steps or 2 * len(losses))]

    def test_a_healthy_run_says_nothing(self) -> None:
        falling = [2 * math.exp(-step / 30) + 0.1 * math.sin(step) + 0.2 for step in range(1, 100)]
        findings = Findings()
        for count in range(1, 100):
            curve = self.curve(falling[:count], {s: falling[s - 1] + 0.1 for s in range(10, 100, 10)})
            assert findings.look(curve, count, 1000) == []

    def test_each_kind(self) -> None:
        assert self.kinds([2.0, math.nan]) == ["diverged"]
        assert self.kinds([2.0, 0.0, 0.0, 0.0]) == ["diverged"]
        assert self.kinds([1.0] * 12 + [6.0]) == ["spike", "learning rate too high"]
        assert self.kinds([1.0 + step / 20 for step in range(20)]) == ["learning rate too high"]
        assert self.kinds([1.5] * 20) == ["nothing learned"]
        assert self.kinds([3.0 * 0.95**step for step in range(40)], steps=40) == ["underfitting"]
        falling = [2.0 * 0.98**step for step in range(40)]
        assert self.kinds(falling, {10: 1.5, 20: 1.7, 30: 1.9}) == ["overfitting"]
        assert self.kinds(falling, {10: 1.5, 20: 1.7, 30: 1.4}) == []

    def test_each_is_told_once(self) -> None:
        curve = self.curve([1.5] * 20)
        findings = Findings()
        assert len(findings.look(curve, 20, 40)) == 1
        assert findings.look(curve, 21, 40) == []
        assert Findings(["nothing learned"]).look(curve, 20, 40) == []


class TestGpu:
    SAID = "0, GPU-aaa, 1024, 81920, 35\n1, GPU-bbb, 80000, 81920, 100\n2, GPU-ccc, [N/A], [N/A], [N/A]\n\n"

    def test_the_table(self) -> None:
        gpus = gpu.parse(self.SAID)
        assert [(each.index, each.busy) for each in gpus] == [("0", 35.0), ("1", 100.0)]
        assert gpus[0].free_gb == pytest.approx(84.8, abs=0.1)
        assert gpu.of("1", gpus) is gpus[1]
        assert gpu.of("GPU-aaa", gpus) is gpus[0]
        assert gpu.of("0,1", gpus) is gpus[1]  # the fullest
        assert gpu.of("", gpus) is None

    def test_devices(self) -> None:
        gpus = gpu.parse(self.SAID)
        assert gpu.devices(gpus, {}) == ("0", "1")
        assert gpu.devices((), {}) == ("",)
        assert gpu.devices(gpus, {"CUDA_VISIBLE_DEVICES": "1"}) == ("1",)
        assert gpu.devices(gpus, {"CUDA_VISIBLE_DEVICES": ""}) == ("",)

    def test_room(self, tmp_path: Path) -> None:
        gpus = gpu.parse(self.SAID)
        assert guards.refusal(tmp_path, {"memory_gb": 40.0, "disk_gb": 0.001}, "0", gpus) is None
        full = guards.refusal(tmp_path, {**SETTLED, "memory_gb": 40.0}, "1", gpus)
        assert full is not None
        assert (full.code, dict(full.try_this)) == ("gpu_memory", {"training.batch_size": 4})
        assert "40.0 GB" in full.message
        disk = guards.refusal(tmp_path, {"disk_gb": 1e9}, "", ())
        assert disk is not None
        assert disk.code == "disk_full"
        with (tmp_path / "checkpoint").open("wb") as written:  # what is written already need not be free again
            written.truncate(3 * 10**9)
        assert guards.refusal(tmp_path, {"disk_gb": 3.1}, "", ()) is None
        memory = guards.refusal(tmp_path, {"memory_gb": 1e9}, "", ())
        assert memory is not None
        assert memory.code == "memory"


class TestPictures:
    def test_a_sketch_for_a_terminal(self) -> None:
        shown = drawing.sketch([(step, 100.0 / step) for step in range(1, 101)], width=30, height=4).splitlines()
        assert len(shown) == 5
        assert shown[0].startswith("100 ┤")
        assert shown[-1].split() == ["step", "1", "step", "100"]
        assert drawing.sketch([]) == "(no loss yet)"
        assert drawing.sketch([(1, math.nan), (2, 1.0)]).count("\n") == 8


def test_who_hears_a_signal() -> None:
    """SIGABRT would kill torchrun's agent, and with it nobody would end its workers."""
    listening = "import signal,sys; signal.signal(signal.SIGABRT, lambda *_: None); print('up', flush=True); input()"
    deaf = "print('up', flush=True); input()"
    for code, hears in ((listening, True), (deaf, False)):
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert catches(child.pid, signal.SIGABRT) is hears
            child.kill()
