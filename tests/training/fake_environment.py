"""A training environment of two programs: an interpreter that says what it is told, and a trainer that reads its data.

Real child processes. The fake trainer's figures and weights follow from data and settings alone, row by row, so equal
ingredients give equal bytes, and a changed row is seen at its own step.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

from tests.training.fake_trainer import Fake

PYTHON = """#!{python}
import json, os, runpy, sys
words = [word for word in sys.argv[1:] if word not in ("-I", "-X", "utf8")]
sys.path.insert(0, {root!r})
from tests.training import fake_environment
fake_environment.interpreter({folder!r}, words)
"""
TRAINER = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.training import fake_environment
fake_environment.llamafactory({folder!r}, sys.argv[1:])
"""
TRAINS = "trains.json"
ROOT = str(Path(__file__).resolve().parents[2])
FACTS = {
    "python": "3.11.9",
    "packages": {"llamafactory": "0.9.5", "torch": "2.11.0", "peft": "0.18.1"},
    "system": "Linux",
    "machine": "x86_64",
    "threads": 2,
    "instructions": "AVX2",
    "cuda": None,
    "gpus": [],
}


def fake_environment(folder: Path, **facts: Any) -> Path:
    """Make it in `folder`; its interpreter."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(parents=True)
    (folder / "facts.json").write_text(json.dumps({**FACTS, **facts}))
    for name, text in (("python", PYTHON), ("llamafactory-cli", TRAINER)):
        file = bin_folder / name
        file.write_text(text.format(python=sys.executable, root=ROOT, folder=str(folder)))
        file.chmod(0o755)
    return bin_folder / "python"


def trains(python: Path, **fake: Any) -> None:
    """Its trainer takes its time, as tests/training/fake_trainer.py does, with these settings beside those it gets."""
    (python.parents[1] / TRAINS).write_text(json.dumps(fake))


def measures(python: Path, **figures: Any) -> None:
    """What the merge of this environment will say."""
    (python.parents[1] / "measured.json").write_text(json.dumps(figures))


def asked(python: Path) -> int:
    """How often its interpreter was asked what it is."""
    file = python.parents[1] / "asked"
    return len(file.read_text()) if file.exists() else 0


def interpreter(folder: str, words: list[str]) -> None:
    """Run by the fake python."""
    here = Path(folder)
    if words[0] == "-c":  # does it have LLaMA-Factory?
        return
    if words[0].endswith("parity_child.py"):  # the same tokens as the engine's
        served = json.loads(Path(words[1]).read_text())["served"]
        same = [{"tokens": tokens, "ends": True, "difference": None} for tokens in served]
        Path(words[2]).write_text(json.dumps({"rows": same, "added": 0}))
        return
    if words[0].endswith("interpreter_child.py"):
        with (here / "asked").open("a") as count:
            count.write("x")
        print((here / "facts.json").read_text())
        return
    request = json.loads(Path(words[1]).read_text())
    base, out = Path(request["base"]), Path(request["out"])
    out.mkdir()
    config = {**json.loads((base / "config.json").read_text()), "written_by": "the trainer"}
    (out / "config.json").write_text(json.dumps(config))
    (out / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[::-1])
    print(json.dumps({"step": 6, "steps": 6}), flush=True)
    file = here / "measured.json"
    if not file.exists():
        sys.exit("RuntimeError: the fake was told to fail")
    Path(words[2]).write_text(file.read_text())


def llamafactory(folder: str, words: list[str]) -> None:
    """Run by the fake llamafactory-cli: `train FILE`."""
    import yaml

    settings = yaml.safe_load(Path(words[1]).read_text())
    more = Path(folder, TRAINS)
    if more.exists():
        sys.exit(Fake({**settings, **json.loads(more.read_text())}).run())
    output = Path(settings["output_dir"])
    output.mkdir(parents=True)
    rows = (Path(settings["dataset_dir"]) / "train.jsonl").read_text().splitlines()
    threads = os.environ.get("OMP_NUM_THREADS", str(json.loads(Path(folder, "facts.json").read_text())["threads"]))
    same = {key: value for key, value in settings.items() if key in ("seed", "learning_rate")}
    digest = hashlib.sha256(json.dumps([same, threads], sort_keys=True).encode())
    history = []
    steps = settings.get("max_steps", len(rows))
    for step in range(1, steps + 1):
        digest.update(rows[(step - 1) % len(rows)].encode())
        loss = int.from_bytes(digest.digest()[:6], "big") / 2**48
        history.append({"step": step, "loss": loss, "grad_norm": loss / 3})
    history.append({"step": steps, "train_runtime": 1.0})
    stopped = settings.get("stop_at", steps)
    state = {"global_step": stopped, "max_steps": steps, "log_history": history}
    (output / "trainer_state.json").write_text(json.dumps(state))
    (output / "adapter_model.safetensors").write_bytes(weights(digest.digest()))
    print(json.dumps({"current_steps": steps, "total_steps": steps}))


def weights(seed: bytes) -> bytes:
    """A rank-4 module that the intake accepts, its numbers made of `seed`."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    header, at = {}, 0
    for part, shape in (("lora_A", [4, 8]), ("lora_B", [8, 4])):
        header[f"{module}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 128]}
        at += 128
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = struct.pack("<64f", *((seed[n % 32] + 1) / 64 for n in range(64)))
    return struct.pack("<Q", len(text)) + text + numbers
