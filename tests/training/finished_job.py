"""A finished job's folder, trained by the fake environment, with its manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training import lineage
from training.digests import Digests
from training.interpreter import Interpreter
from training.places import Places
from training.types import Job, JobState

CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
RECIPE = {
    "name": "customer-service",
    "data": {"train": [{"file": "/home/ada/rows.csv"}], "validation": 0.1},
    "gate": {"judge": {"url": "https://ada:secret@judge.example/v1?k=1", "model": "m", "api_key": "sk-1"}},
}
REPORT = {
    "verdict": {"passed": True, "sentence": "Better than the base by 0.5."},
    "scores": {"candidate": {"exact_match": 0.75}, "base": {"exact_match": 0.25}},
    "models": {"candidate": "customer-service@0123456789ab"},
    "rows": {"compared": 8},
}


@dataclass
class Finished:
    folder: Path
    base: Path
    python: Path
    job: Job
    settled: dict[str, Any]

    def manifest(self, **more: Any) -> dict[str, Any]:
        digests = Digests(self.folder.parents[1] / "digests.json")
        facts = Interpreter(self.python).facts()
        return lineage.manifest(
            self.job,
            self.folder,
            self.settled,
            trainer=facts,
            digests=digests,
            at=1_800_000_000.5,
            adapter=self.folder / "adapter",
            **more,
        )


def base_model(folder: Path) -> Path:
    """Enough of a base to be hashed."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "something", "hidden_size": 8}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(bytes(range(64)))
    return folder


def finished(data: Path, python: Path, job_id: str = "ftjob-one", **settings: Any) -> Finished:
    """Lay it out below the data directory `data`, train it, write its manifest."""
    folder, base = Places(data).job(job_id), data / "models" / "tiny"
    if not base.exists():
        base_model(base)
    (folder / "data").mkdir(parents=True)
    rows = [json.dumps({"messages": [{"role": "user", "content": f"question {n}"}]}) for n in range(6)]
    (folder / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "data" / "dataset_info.json").write_text("{}")
    (folder / "data" / "report.json").write_text('{"file": "/home/ada/rows.csv"}')
    paths = {"model_name_or_path": str(base), "dataset_dir": str(folder / "data"), "output_dir": str(folder / "out")}
    asked = {**paths, "stage": "sft", "learning_rate": 0.001, "seed": 7, "report_to": "wandb", **settings}
    (folder / "train.yaml").write_text(yaml.safe_dump(asked))
    runner = Interpreter(python)
    runner.run([runner.llamafactory, "train", str(folder / "train.yaml")], folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))
    shutil.copyfile(folder / "out" / "adapter_model.safetensors", folder / "adapter" / "adapter_model.safetensors")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(REPORT))
    job = Job(job_id, None, "customer-service", JobState.SUCCEEDED, RECIPE, 1_800_000_000.0)
    settled = {"base": "tiny", "steps": 6, "tokens": 1234, "rows": 6, "device": "cpu", "gpus": 0, "served": "adapter"}
    made = Finished(folder, base, python, job, settled)
    lineage.write(folder, made.manifest())
    return made
