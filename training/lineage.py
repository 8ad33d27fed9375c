"""How a version was made, as one document: what went in (data, split, settings, base, packages, seed, machine) and what
came out (log, evaluation, weights). It travels with the version, so it holds hashes and names, never a path.

Must not know gateways. training/rerun.py trains again from one; training/modelcard.py writes one out for people.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from adapters import intake
from adapters.errors import InvalidRequest
from training import baseview
from training.digests import Digests, hashed
from training.types import Job

SCHEMA = 1
FILE = "manifest.json"
INGREDIENTS = ("data", "split", "settings", "deepspeed", "base", "python", "packages", "environment")
PATHS = ("model_name_or_path", "dataset_dir", "output_dir", "deepspeed")  # of train.yaml: another one changes nothing
ANY_RANK = 512
MAX_LOSSES = 10_000
_BASE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SECRET = re.compile(r"(^|_)(key|token|secret|password)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Difference:
    """what: its dotted place; then, now: None where it is not there."""

    what: str
    then: Any
    now: Any

    @property
    def sentence(self) -> str:
        return f"{self.what}: {_short(self.then)} then, {_short(self.now)} now"


def manifest(
    job: Job,
    folder: Path,
    settled: Mapping[str, Any],
    *,
    trainer: Mapping[str, Any],
    digests: Digests,
    at: float,
    adapter: Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
    parent: str | None = None,
    proof: Any = None,
) -> dict[str, Any]:
    """Everything about the finished run in the job's `folder`. Blocking: it hashes. OSError, AdapterRejected.

    settled: the plan's document; trainer: what Interpreter.facts() says; at: unix seconds; adapter: the two files as
    they are registered, None for a whole model; evaluation: its summary; parent: the version it is to follow, as
    `name@version`; proof: the trainer's own answers, as engines are held to them (adapters/proof.py).
    """
    checked = intake.check(adapter.absolute(), None, ANY_RANK) if adapter is not None else None
    output = folder / "out"
    made = {
        "schema": SCHEMA,
        "name": job.name,
        "version": checked.version if checked is not None else None,
        "digest": checked.digest if checked is not None else None,
        "rank": checked.rank if checked is not None else settled.get("rank"),
        "parent": parent,
        "job": job.id,
        "created": int(at),
        "recipe": portable(job.recipe),
        **ingredients(folder, job.recipe, settled, trainer=trainer, digests=digests),
        "plan": {key: settled[key] for key in ("steps", "tokens", "epochs", "rows", "dropped") if key in settled},
        "served": settled.get("served", "adapter"),
        "adapter_folder": settled.get("adapter_folder") or ".",
        "chat_template_kwargs": dict(settled.get("chat_template_kwargs") or {}),
        "log": {"sha256": _sha(folder / "run.log"), "losses": losses(output)},
        "evaluation": _evaluation(folder, evaluation),
        "weights": trained(output, settled),
    }
    return made if proof is None else {**made, "proof": proof}


def ingredients(
    folder: Path,
    recipe: Mapping[str, Any],
    settled: Mapping[str, Any],
    *,
    trainer: Mapping[str, Any],
    digests: Digests,
    base: Path | None = None,
) -> dict[str, Any]:
    """What goes into a run that is laid out in `folder`. base: where it lies now, if not where train.yaml says."""
    settings = read_settings(folder)
    base = base or base_of(folder)
    data = {each.name: hashed(each) for each in sorted((folder / "data").glob("*.json*")) if each.name != "report.json"}
    wanted = recipe.get("data")
    deepspeed = settings.get("deepspeed")
    return {
        "data": {name: {"sha256": each.sha256, "bytes": each.bytes, "rows": each.lines} for name, each in data.items()},
        "split": {
            "validation": portable(wanted.get("validation")) if isinstance(wanted, Mapping) else None,
            "seed": settings.get("data_seed", settings.get("seed")),
        },
        "settings": {name: value for name, value in settings.items() if name not in PATHS},
        "deepspeed": _sha(folder / Path(deepspeed).name) if isinstance(deepspeed, str) else None,
        "base": {
            "id": settled.get("base") or base_of(folder).name,
            "files": base_files(base, digests),
        },
        "seed": settings.get("seed"),
        "python": trainer.get("python"),
        "packages": dict(trainer.get("packages") or {}),
        "environment": {
            "device": "gpu" if settled.get("device") == "gpu" or settled.get("gpus") else "cpu",
            "count": settled.get("gpus") or 0,
            **{key: trainer.get(key) for key in ("system", "machine", "threads", "instructions", "cuda", "gpus")},
        },
    }


def base_of(folder: Path) -> Path:
    """Where the base of the run in `folder` lay when it ran. InvalidRequest."""
    return baseview.origin(Path(str(read_settings(folder).get("model_name_or_path", ""))))


def base_files(base: Path, digests: Digests) -> dict[str, str]:
    """sha256 of all that decides what the base says. OSError."""
    weights = sorted(base.glob("*.safetensors")) or sorted(base.glob("pytorch_model*.bin"))
    small = [base / name for name in _BASE_FILES if (base / name).is_file()]
    return {file.name: digests.of(file) for file in (*small, *weights)}


def read_settings(folder: Path) -> dict[str, Any]:
    """train.yaml of a job; InvalidRequest where there is none."""
    try:
        found = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{folder} holds no run: there is no train.yaml that can be read.")
    return found


def losses(output: Path) -> list[list[Any]]:
    """[step, loss, grad_norm, eval_loss] of every logged step, in full; a number that is none, as text."""
    try:
        history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        found: dict[int, list[Any]] = {}
        for entry in history:
            step = int(entry["step"])
            row = found.setdefault(step, [step, None, None, None])
            for at, key in enumerate(("loss", "grad_norm", "eval_loss"), start=1):
                if key in entry:
                    row[at] = _plain(entry[key])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    rows = [row for row in found.values() if any(value is not None for value in row[1:])]
    every = math.ceil(len(rows) / MAX_LOSSES) or 1
    return rows[::every]


def trained(output: Path, settled: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the weights as the trainer left them: what a rerun is compared with."""
    place = output / str(settled.get("adapter_folder") or "")
    return {file.name: hashed(file).sha256 for file in sorted(place.glob("*.safetensors"))}


def write(folder: Path, document: Mapping[str, Any]) -> Path:
    """Put it beside what it describes, whole or not at all."""
    fresh, target = folder / f".{FILE}.{os.getpid()}", folder / FILE
    fresh.write_text(dumped(document), encoding="utf-8")
    os.replace(fresh, target)
    return target


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest in `folder`; None where there is none that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_manifest(document: Mapping[str, Any]) -> bool:
    """Whether it is one of ours: whoever registers a version may say anything about it."""
    inner = [document.get(key) for key in ("base", "data", "settings", "environment", "packages", "log", "plan")]
    inner += [document.get("evaluation"), document.get("recipe"), (_table(document.get("base"))).get("files")]
    rows = [*_table(document.get("data")).values()]
    logged = _table(document.get("log")).get("losses") or []
    return (
        document.get("schema") == SCHEMA
        and all(each is None or isinstance(each, Mapping) for each in (*inner, *rows))
        and isinstance(logged, list)
        and all(isinstance(row, list) and len(row) == 4 for row in logged)
    )


def dumped(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def differences(a: Mapping[str, Any], b: Mapping[str, Any], parts: tuple[str, ...] = INGREDIENTS) -> list[Difference]:
    """What is in `parts` of one and not, or otherwise, in the other; in the order of `parts`."""
    found = []
    for part in parts:
        then, now = dict(_flat(part, a.get(part))), dict(_flat(part, b.get(part)))
        for what in sorted({*then, *now}):
            if then.get(what) != now.get(what):
                found.append(Difference(what, then.get(what), now.get(what)))
    return found


def portable(value: Any) -> Any:
    """The same without what only this machine or its owner should know: folders, credentials in URLs, secrets."""
    if isinstance(value, Mapping):
        return {key: portable(inner) for key, inner in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    if isinstance(value, str):
        if "://" in value:
            return _bare_url(value)
        return value.rstrip("/").rpartition("/")[2] if value.startswith(("/", "~", "./", "../")) else value
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _bare_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(an address)"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _evaluation(folder: Path, summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """summary: None takes from the report what a reader of a model card wants."""
    file = folder / "evaluation" / "evaluation.json"
    sha256 = _sha(file)
    if sha256 is not None and summary is None:
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            summary = {key: report[key] for key in ("verdict", "scores", "models") if key in report}
            summary["compared_rows"] = (report.get("rows") or {}).get("compared")
        except (OSError, ValueError, AttributeError, TypeError):
            summary = None
    if sha256 is None and summary is None:
        return None
    return {"sha256": sha256, "summary": portable(summary) if summary is not None else None}


def _sha(file: Path) -> str | None:
    try:
        return hashed(file).sha256
    except OSError:
        return None


def _plain(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _flat(at: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{at}.{key}", inner)
    elif value is not None:
        yield at, value


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text[:80]
