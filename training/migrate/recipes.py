"""OpenAI's fine-tuning jobs → recipes for training here: which settings carry over, and which mean nothing elsewhere.

Epochs, seed, method and beta do. Batch size and learning rate multiplier are about a base that nobody else has: they
are written down beside, and decided anew. Must not know how a recipe is carried out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidName, InvalidRequest
from adapters.names import check_public_name
from training.migrate import folder as files
from training.migrate.folder import Folder

_ODD = re.compile(r"[^A-Za-z0-9._-]+")
STAGES = {"supervised": "sft", "dpo": "dpo"}


@dataclass(frozen=True, slots=True)
class Made:
    """One recipe. model: what the job made there."""

    job: str
    model: str
    name: str
    file: str


@dataclass(frozen=True, slots=True)
class Passed:
    """A job without a recipe, and why."""

    job: str
    why: str


@dataclass(frozen=True, slots=True)
class Recipes:
    made: tuple[Made, ...]
    passed: tuple[Passed, ...]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def write_recipes(root: Path, to: Path, *, base: str | None, keep_names: bool, golden: Path | None = None) -> Recipes:
    """A recipe in `to` for every job below `root` that made a model. InvalidRequest where there is none.

    keep_names: the adapter is called `ft:…` as it was, and client code keeps its model's name.
    """
    folder = Folder(root)
    made: list[Made] = []
    passed: list[Passed] = []
    taken: set[str] = set()
    for job in folder.jobs():
        why = _unfit(folder, job)
        if why is not None:
            passed.append(Passed(job["id"], why))
            continue
        name = _name(job, keep_names, taken)
        taken.add(name)
        place = to / f"{_ODD.sub('-', name)}.yaml"
        files.write_text(place, _text(folder, job, name, base, place.absolute().parent, golden))
        made.append(Made(job["id"], str(job["fine_tuned_model"]), name, str(place)))
    if not made:
        raise InvalidRequest(f"No job in {root} can be trained again: {passed[0].job}: {passed[0].why}.")
    return Recipes(tuple(made), tuple(passed))


def _unfit(folder: Folder, job: Mapping[str, Any]) -> str | None:
    if job.get("status") != "succeeded" or not job.get("fine_tuned_model"):
        return f"it {job.get('status')}, and made no model"
    kind = _method(job)[0]
    if kind not in STAGES:
        return f"its method is {kind}, which nothing here trains"
    file_id = job.get("training_file")
    if not isinstance(file_id, str) or folder.bytes_of(file_id) is None:
        return "its training file could not be fetched; index.json says why"
    return None


def _method(job: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The method's name and its hyper-parameters, where newer and older jobs have them."""
    method = job.get("method")
    kind = str(method.get("type") or "supervised") if isinstance(method, Mapping) else "supervised"
    inner = method.get(kind) if isinstance(method, Mapping) else None
    settings = inner.get("hyperparameters") if isinstance(inner, Mapping) else None
    older = job.get("hyperparameters")
    for found in (settings, older):
        if isinstance(found, Mapping):
            return kind, found
    return kind, {}


def _name(job: Mapping[str, Any], keep: bool, taken: set[str]) -> str:
    """The public name of the adapter to be: as it was, or the suffix that its owner gave it."""
    model = str(job["fine_tuned_model"])
    if keep:
        try:
            return check_public_name(model)
        except InvalidName:
            raise InvalidRequest(f"The name {model[:128]} cannot be kept here. Leave out --keep-names.") from None
    _, _, _, suffix, last = [*model.split(":"), *[""] * 5][:5]
    found = _ODD.sub("-", str(job.get("user_provided_suffix") or suffix)).strip("-._").lower()
    name = found or f"model-{last}".strip("-").lower()
    return name if name not in taken else f"{name}-{last.lower() or job['id'][-8:].lower()}"


def _text(
    folder: Folder, job: Mapping[str, Any], name: str, base: str | None, beside: Path, golden: Path | None
) -> str:
    kind, given = _method(job)
    recipe: dict[str, Any] = {"name": name}
    if base is not None:
        recipe["base"] = base
    recipe["data"] = _data(folder, job, beside)
    recipe["method"] = {"stage": STAGES[kind], "tuning": "lora"}
    training: dict[str, Any] = {"epochs": _number(given.get("n_epochs")), "batch_size": "auto", "learning_rate": "auto"}
    if isinstance(job.get("seed"), int) and 0 <= job["seed"] < 2**31:
        training["seed"] = job["seed"]
    if kind == "dpo" and isinstance(given.get("beta"), int | float):
        training["beta"] = given["beta"]
    recipe["training"] = training
    if golden is not None:
        recipe["gate"] = {"no_regression_on": os.path.relpath(golden.absolute(), beside)}
    recipe["then"] = "register"
    head = [
        f"Made from {job['id']}, which trained {_line(job.get('model'))} into {_line(job['fine_tuned_model'])}.",
        f"There: batch size {_line(given.get('batch_size'))}, learning rate multiplier "
        f"{_line(given.get('learning_rate_multiplier'))}. Both are about that base, so they are decided anew here.",
    ]
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _data(folder: Folder, job: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    def place(file_id: object) -> str | None:
        found = folder.bytes_of(file_id) if isinstance(file_id, str) else None
        return os.path.relpath(found.absolute(), beside) if found is not None else None

    return {"train": place(job["training_file"]), "validation": place(job.get("validation_file")) or 0.1}


def _number(value: object) -> int | float | str:
    return value if isinstance(value, int | float) and value > 0 else "auto"


def _line(value: object) -> str:
    """Text from elsewhere in a comment: never a new line."""
    return "".join(c for c in str(value if value is not None else "not said") if c.isprintable())[:160]
