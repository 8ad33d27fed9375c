"""A trainer that is a real process and writes LLaMA-Factory 0.9.5's files, without torch: `fake_trainer.py SETTINGS`.

Like the real one it stops after a step on SIGABRT with exit code 0, goes on from the highest checkpoint without
looking, appends to its log, and refuses a broken checkpoint. Its "weights" are a chain of hashes: the same number of
steps gives the same bytes, however often it was interrupted; with `lora`, the base's width, they are an adapter that
engines take. Only the standard library: it starts in 30 ms.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any


class Fake:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.out = Path(given["output_dir"])
        self.steps = int(given.get("max_steps", 20))
        self.step = 0
        self.weights = hashlib.sha256(b"base").digest()
        self.history: list[dict[str, Any]] = []
        self.aborted = False
        self.jit = False
        self.begun = time.time()

    def run(self) -> int:
        given = self.given
        self.out.mkdir(parents=True, exist_ok=True)
        self._alone()
        if os.environ.get("LLAMABOARD_ENABLED") == "1":
            signal.signal(signal.SIGABRT, self._abort)
        if given.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if given.get("jit"):  # `enable_jit_checkpoint`
            signal.signal(signal.SIGTERM, self._save_now)
        for _ in range(given.get("children", 0)):  # in a session of their own, as torchrun's workers
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}", flush=True)
        time.sleep(given.get("loading_s", 0))
        if "raises" in given and self._once("raises"):
            print("Traceback (most recent call last):", file=sys.stderr)
            print(given["raises"], file=sys.stderr, flush=True)
            return 1
        self._resume()
        while self.step < self.steps:
            self._wait_for_gate()
            self.step += 1
            self._train_a_step()
            if self.jit:
                self._save(self.out / f"checkpoint-{self.step}", final=False)
                break
            if self.aborted or self.step == given.get("ends_early_at"):
                break
        if given.get("dies_at_end") and self._once("end"):
            os.kill(os.getpid(), signal.SIGKILL)
        self._log({"epoch": self._epoch()})
        self._save(self.out, final=True)
        if given.get("no_adapter"):
            (self.out / "adapter_model.safetensors").unlink()
        print("Training completed.", flush=True)
        return int(given.get("code", 0))

    def _train_a_step(self) -> None:
        given = self.given
        time.sleep(given.get("step_s", 0.01))
        self.weights = hashlib.sha256(self.weights + str(self.step).encode()).digest()
        if self.step % given.get("logging_steps", 1) == 0:
            loss = self._loss()
            self.history.append({"step": self.step, "loss": loss, "grad_norm": 0.5, "learning_rate": 1e-4})
            self._log({"loss": loss, "lr": 1e-4, "epoch": self._epoch()})
        if given.get("eval_steps") and self.step % given["eval_steps"] == 0:
            valid = 2.0 + self.step / 10 if given.get("overfits") else self._loss() + 0.1
            self.history.append({"step": self.step, "eval_loss": valid})
            self._log({"eval_loss": valid, "epoch": self._epoch()})
        if self.step % given.get("save_steps", 5) == 0:
            folder = self.out / f"checkpoint-{self.step}"
            if self.step == given.get("dies_saving_at") and self._once("saving"):
                folder.mkdir(exist_ok=True)
                (folder / "adapter_model.safetensors").write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
            self._save(folder, final=False)
            self._rotate()
        if self.step in given.get("dies_at", ()) and (given.get("dies_always") or self._once(f"died-{self.step}")):
            os.kill(os.getpid(), signal.SIGKILL)
        while self.step == given.get("hangs_at"):
            time.sleep(0.05)

    def _loss(self) -> float:
        if self.step >= self.given.get("nan_from", math.inf):
            return math.nan
        return 1.0 if self.given.get("flat") else 0.2 + 2.0 * math.exp(-3 * self.step / self.steps)

    def _alone(self) -> None:
        """Two trainers of one run at once are a fault of whoever started them."""
        self.lock = (self.out.parent / "trainer.lock").open("a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (self.out.parent / "two-at-once").touch()
        with (self.out.parent / "starts").open("a") as starts:
            starts.write(f"{os.getpid()}\n")

    def _abort(self, number: int, frame: object) -> None:
        self.aborted = not self.given.get("ignore_abort", False)

    def _save_now(self, number: int, frame: object) -> None:
        self.jit = True

    def _once(self, what: str) -> bool:
        mark = self.out.parent / f"once-{what}"
        if mark.exists():
            return False
        mark.touch()
        return True

    def _wait_for_gate(self) -> None:
        """Tests let it go on: no further than the number in the file."""
        gate = self.given.get("gate")
        while gate is not None and not (self.aborted or self.jit):
            try:
                if self.step < int(Path(gate).read_text() or "0"):
                    return
            except (FileNotFoundError, ValueError):
                pass
            time.sleep(0.01)

    def _resume(self) -> None:
        numbers = [int(n[1]) for n in map(re.compile(r"checkpoint-(\d+)$").fullmatch, os.listdir(self.out)) if n]
        if not numbers:
            if (self.out / "adapter_model.safetensors").exists():
                raise ValueError("Output directory already exists and is not empty. Please set `overwrite_output_dir`.")
            return
        folder = self.out / f"checkpoint-{max(numbers)}"
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
            with zipfile.ZipFile(folder / "optimizer.pt") as archive:
                self.weights = archive.read("weights")
        except (OSError, ValueError, zipfile.BadZipFile):
            raise ValueError(f"Can't find a valid checkpoint at {folder}") from None
        self.step, self.history = state["global_step"], state["log_history"]

    def _save(self, folder: Path, *, final: bool) -> None:
        folder.mkdir(exist_ok=True)
        header, data = {"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}, self.weights
        config: dict[str, Any] = {"r": 8, "peft_type": "LORA"}
        if self.given.get("lora"):
            header, data, config = _lora(self.weights, int(self.given["lora"]))
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        (folder / "adapter_model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        if not final:
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
                with zipfile.ZipFile(folder / name, "w") as archive:
                    archive.writestr("weights", self.weights)
        state = {"global_step": self.step, "max_steps": self.steps, "log_history": self.history}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        if final:
            (folder / "train_results.json").write_text("{}")

    def _rotate(self) -> None:
        limit = self.given.get("save_total_limit")
        if limit is not None:
            for folder in sorted(self.out.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[:-limit]:
                shutil.rmtree(folder)

    def _epoch(self) -> float:
        return round(3 * self.step / self.steps, 2)

    def _log(self, more: dict[str, Any]) -> None:
        took = time.time() - self.begun  # since this start, and divided by all steps: wrong after a resume
        left = took / max(1, self.step) * (self.steps - self.step)
        line = {"current_steps": self.step, "total_steps": self.steps, **more}
        line |= {"percentage": round(100 * self.step / self.steps, 2), "elapsed_time": _clock(took)}
        line |= {"remaining_time": _clock(left), "throughput": 100.0, "total_tokens": 64 * self.step}
        with (self.out / "trainer_log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _lora(weights: bytes, width: int) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Header, data and config of an adapter for a base so wide that the intake takes, its numbers made of `weights`."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    header: dict[str, Any] = {}
    for at, (part, shape) in enumerate((("lora_A", [4, width]), ("lora_B", [width, 4]))):
        offsets = [16 * width * at, 16 * width * (at + 1)]
        header[f"{module}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    return header, struct.pack(f"<{8 * width}f", *((weights[n % 32] + 1) / 64 for n in range(8 * width))), config


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


if __name__ == "__main__":
    sys.exit(Fake(json.loads(Path(sys.argv[1]).read_text())).run())
