"""Rebuilds the demo's weights from configs/demo/data: the base with transformers, the adapters with LLaMA-Factory.

    python -m training.demo --training-python ENV/bin/python --out DIR [--only NAME]… [--quick]

Owns the demo's recipe. Whatever needs torch runs as a child process in the training environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from adapters.errors import InvalidRequest, ServiceError
from training import baseview
from training.demo_child import Child, DemoFailed

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo"
BASE_SCRIPT = Path(__file__).resolve().with_name("demo_base.py")
ADAPTERS = ("customer-service", "code-generation", "financial-qa")
BASE_ID = "demo-base"
# Word for word in the base's chat template and in every training example: what is trained is what is served.
SYSTEM = "You are a helpful assistant."
SEED = 7
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to train. The full figures were measured on 2 cores: base about 70 s, each adapter about 65 s."""

    base_steps: int = 300
    epochs: int = 150


QUICK = Effort(base_steps=5, epochs=2)


def recipe(job: Path, base: Path, effort: Effort) -> dict[str, object]:
    """LLaMA-Factory's settings for one adapter; its defaults for logging and saving (each 500 steps) are overruled."""
    return {
        "model_name_or_path": str(base),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset_dir": str(job),
        "dataset": "demo",
        "template": "qwen",
        "default_system": SYSTEM,
        "cutoff_len": 256,
        "output_dir": str(job / "out"),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        # 3e-3 learns all 24 answers; with 1e-2 it learned none.
        "learning_rate": 3.0e-3,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": effort.epochs,
        "seed": SEED,
        "data_seed": SEED,
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "plot_loss": False,
    }


def write_job(job: Path, data: Path, base: Path, effort: Effort) -> Path:
    """Lay out one LLaMA-Factory run: settings, a copy of the data, its description, and `base` as it is loaded.

    Returns the settings file.
    """
    if " " in str(job):
        # LLaMA-Factory splits its own command line at spaces when it starts more than one process.
        raise InvalidRequest(f"The folder {job} has a space in its path. Set TMPDIR to a folder without spaces.")
    job.mkdir(parents=True)
    shutil.copyfile(data, job / "data.jsonl")
    description = {
        "file_name": "data.jsonl",
        # Not `formatting: openai`: LLaMA-Factory 0.9.5 adds "detailed thinking off" to every system prompt there.
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (job / "dataset_info.json").write_text(json.dumps({"demo": description}, indent=2), encoding="utf-8")
    settings = job / "train.yaml"
    loaded = baseview.lay_out(base, job / "base", {})
    settings.write_text(yaml.safe_dump(recipe(job, loaded, effort), sort_keys=False), encoding="utf-8")
    return settings


def child_environment(python: Path, job: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """A short allow-list: no keys, no database address, no variable that switches LLaMA-Factory to another launcher."""
    kept = {name: outer[name] for name in ("LANG", "TMPDIR", "SYSTEMROOT") if name in outer}
    return kept | {
        "PATH": os.pathsep.join((str(python.parent), outer.get("PATH", os.defpath))),
        "HOME": str(job),
        "HF_HOME": str(job / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",
        "CUDA_VISIBLE_DEVICES": "",  # on the CPU, so that two rebuilds on one machine give the same bytes
    }


def build_base(child: Child, python: Path, text: Path, out: Path, effort: Effort) -> None:
    """Pre-train the base into `out`. `-I`: this folder's file names must not shadow the child's modules."""
    argv = [str(python), "-I", "-X", "utf8", str(BASE_SCRIPT), "pretrain", "--text", str(text), "--out", str(out)]
    argv += ["--steps", str(effort.base_steps), "--seed", str(SEED), "--system", SYSTEM]
    child.run(argv)


def build_adapter(child: Child, python: Path, name: str, base: Path, job: Path, effort: Effort) -> None:
    """Train one adapter into `job`/adapter: exactly the two files that an engine needs."""
    data = DEMO / "data" / f"{name}.jsonl"
    settings = write_job(job / "train", data, base, effort)
    log = settings.parent / "out" / "trainer_log.jsonl"
    child.run([str(python.with_name("llamafactory-cli")), "train", str(settings)], progress=log)
    check_trained(settings.parent)
    made, kept = settings.parent / "out", job / "adapter"
    kept.mkdir()
    source, target = made / "adapter_model.safetensors", kept / "adapter_model.safetensors"
    argv = [str(python), "-I", "-X", "utf8", str(BASE_SCRIPT), "shrink", "--source", str(source), "--out", str(target)]
    child.run(argv)
    config = json.loads((made / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_ID
    config["target_modules"] = sorted(config["target_modules"])  # a set there: its order changes from run to run
    (kept / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_trained(job: Path) -> None:
    """Exit code 0 is not success: LLaMA-Factory also exits 0 when stopped early. Raises DemoFailed."""
    state = json.loads((job / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    if state["global_step"] != state["max_steps"]:
        raise DemoFailed(f"Training stopped at step {state['global_step']} of {state['max_steps']}. Run it again.")


def publish(made: Path, target: Path) -> None:
    """Put a finished folder in place, readable by whichever user runs the engine (trainers write weights 0600)."""
    for file in made.iterdir():
        file.chmod(0o644)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(made, fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def digests(root: Path) -> dict[str, str]:
    """sha256 of every file below `root`, by relative path with forward slashes."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_manifest(out: Path, effort: Effort) -> None:
    """Tie weights to data: what a test compares, and what says which data a shipped weight came from."""
    body = {
        "recipe": {"base_steps": effort.base_steps, "epochs": effort.epochs, "seed": SEED, "system": SYSTEM},
        "data": digests(DEMO / "data"),
        "base": digests(out / "base"),
        "adapters": digests(out / "adapters"),
    }
    (out / "manifest.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def rebuild(python: Path, out: Path, only: Sequence[str], effort: Effort, console: Console) -> list[Path]:
    """Build what `only` names (nothing: all) into `out`; adapters stand on out/base, else on the shipped base.

    Returns the folders written. Raises InvalidRequest and DemoFailed.
    """
    if not python.with_name("llamafactory-cli").exists():
        raise InvalidRequest(
            f"There is no llamafactory-cli beside {python}. Name the interpreter of an environment with LLaMA-Factory."
        )
    wanted = [name for name in ("base", *ADAPTERS) if not only or name in only]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    written: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="loragate-demo-") as scratch, Progress(*columns, console=console) as bars:
        for number, name in enumerate(wanted, start=1):
            job = Path(scratch) / name
            job.mkdir()
            task = bars.add_task(f"{number}/{len(wanted)} {name}", total=None, state="starting")

            def show(done: int, in_all: int, task: TaskID = task) -> None:
                bars.update(task, completed=done, total=in_all, state=f"step {done} of {in_all}")

            child = Child(job, child_environment(python, job, os.environ), show)
            written.append(build(child, python, name, out, effort))
            bars.update(task, state="done")
    write_manifest(out, effort)
    return written


def build(child: Child, python: Path, name: str, out: Path, effort: Effort) -> Path:
    """Make one piece, "base" or an adapter's name, and put it in place. Returns its folder."""
    if name == "base":
        build_base(child, python, DEMO / "data" / "base.txt", child.folder / "base", effort)
        made, target = child.folder / "base", out / "base"
    else:
        base = out / "base" if (out / "base" / "config.json").exists() else DEMO / "base"
        build_adapter(child, python, name, base.resolve(), child.folder, effort)
        made, target = child.folder / "adapter", out / "adapters" / name
    publish(made, target)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 0 done, 1 failed with one sentence, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description="Rebuild the demo's weights.")
    parser.add_argument("--training-python", type=Path, required=True, help="interpreter beside llamafactory-cli")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets base/, adapters/ and manifest.json")
    parser.add_argument("--only", action="append", default=[], choices=("base", *ADAPTERS), help="repeatable")
    parser.add_argument("--quick", action="store_true", help="a few steps: proves the way, makes no usable weights")
    chosen = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        written = rebuild(
            chosen.training_python.absolute(), chosen.out, chosen.only, QUICK if chosen.quick else Effort(), console
        )
    except ServiceError as error:
        console.print(error.message, style="red", markup=False, highlight=False)
        return 1
    for folder in written:
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
