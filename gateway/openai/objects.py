"""Files, jobs, events and checkpoints as OpenAI's clients read them. Must not know requests or services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.ids import checkpoint_name
from training.types import Checkpoint, Job, JobEvent, JobState, Outcome, StoredFile

Document = dict[str, Any]

EVENT, CHECKPOINT = "ftevent-", "ftckpt_"
STATUS = {JobState.VALIDATING: "validating_files"}  # the others have OpenAI's own words
METHODS = {"sft": "supervised", "dpo": "dpo"}
# ours → where the settled plan has it, of LLaMA-Factory's settings
SETTLED = {"n_epochs": "num_train_epochs", "beta": "pref_beta"}


def file(stored: StoredFile) -> Document:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.bytes,
        "created_at": int(stored.created_at),
        "expires_at": int(stored.expires_at) if stored.expires_at is not None else None,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": stored.status.value,
        "status_details": stored.details,
    }


def job(made: Job, organization: str) -> Document:
    """A job; one that an operator made from a recipe too, as far as it has such fields."""
    asked = made.request or _asked(made)
    kind = asked["method"]["type"]
    hyperparameters = _decided(made, asked["method"][kind]["hyperparameters"])
    result = made.result or {}
    return {
        "id": made.id,
        "object": "fine_tuning.job",
        "model": asked["model"],
        "created_at": int(made.created_at),
        "finished_at": int(made.finished_at) if made.finished_at is not None and made.is_final else None,
        "estimated_finish": _estimate(made),
        "fine_tuned_model": _model(made),
        "organization_id": organization,
        "result_files": list(result.get("result_files", ())),
        "status": STATUS.get(made.state, made.state.value),
        "training_file": asked["training_file"],
        "validation_file": asked["validation_file"],
        "hyperparameters": {name: value for name, value in hyperparameters.items() if name != "beta"},
        "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        "trained_tokens": result.get("trained_tokens") if made.is_final else None,
        "error": _error(made),
        "seed": asked["seed"],
        "integrations": asked["integrations"],
        "metadata": asked["metadata"],
        "user_provided_suffix": asked["suffix"],
    }


def event(told: JobEvent) -> Document:
    return {
        "id": f"{EVENT}{told.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(told.at),
        "level": told.level,
        "message": told.message,
        "type": told.kind,
        "data": dict(told.data) if told.data is not None else None,
    }


def checkpoint(made: Checkpoint, name: str) -> Document:
    """name: the public name of the job's adapter."""
    return {
        "id": checkpoint_id(made),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(made.at),
        "fine_tuned_model_checkpoint": checkpoint_name(name, made.step),
        "fine_tuning_job_id": made.job,
        "metrics": {"step": made.step, **made.metrics},
        "step_number": made.step,
    }


def checkpoint_id(made: Checkpoint) -> str:
    return f"{CHECKPOINT}{made.job.rpartition('-')[2]}{made.step:06d}"


def page(objects: list[Document], has_more: bool) -> Document:
    ids = [each["id"] for each in objects]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"object": "list", "data": objects, **ends, "has_more": has_more}


def _model(made: Job) -> str | None:
    """What to ask for: the name once it answers, the version where nobody wanted more."""
    if made.state is not JobState.SUCCEEDED:
        return None
    if made.outcome in (Outcome.PROMOTED, Outcome.CANARY):
        return made.name
    model = (made.result or {}).get("model")
    return str(model) if made.outcome is Outcome.REGISTERED and model else None


def _estimate(made: Job) -> int | None:
    progress = made.progress
    if made.state is not JobState.RUNNING or progress is None or progress.eta_s is None or made.seen_at is None:
        return None
    return int(made.seen_at + progress.eta_s)


def _error(made: Job) -> Document | None:
    if made.error is None or made.state is not JobState.FAILED:
        return None
    return {"code": made.error.code, "message": made.error.message, "param": made.error.param}


def _decided(made: Job, asked: Mapping[str, Any]) -> Document:
    """The hyperparameters, each `auto` replaced once the plan has a number for it."""
    settings = (made.settled or {}).get("llamafactory")
    found = dict(asked)
    if not isinstance(settings, Mapping):
        return found
    for name, value in asked.items():
        if value != "auto":
            continue
        if name == "batch_size":
            each, times = settings.get("per_device_train_batch_size"), settings.get("gradient_accumulation_steps", 1)
            decided: Any = each * times if isinstance(each, int) and isinstance(times, int) else None
        elif name == "learning_rate_multiplier":
            decided = 1.0
        else:
            decided = settings.get(SETTLED.get(name, name))
        if isinstance(decided, int | float):
            found[name] = int(decided) if name == "n_epochs" and float(decided).is_integer() else decided
    return found


def _asked(made: Job) -> Document:
    """What would have been asked for a job that was made from a recipe."""
    recipe: Mapping[str, Any] = made.recipe
    data, training, method = (recipe.get(part) or {} for part in ("data", "training", "method"))
    train = data.get("train")
    files = [each["file"] if isinstance(each, Mapping) else each for each in _list(train)]
    validation = data.get("validation")
    kind = METHODS.get(method.get("stage", "sft"), str(method.get("stage")))
    hyperparameters = {
        "n_epochs": training.get("epochs", "auto"),
        "batch_size": training.get("batch_size", "auto"),
        "learning_rate_multiplier": training.get("learning_rate_multiplier", 1.0),
    }
    if kind != "supervised":
        hyperparameters["beta"] = training.get("beta", "auto")
    return {
        "model": recipe.get("base") or "",
        "training_file": str(files[0]).rpartition("/")[2] if files else "",
        "validation_file": validation.rpartition("/")[2] if isinstance(validation, str) else None,
        "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        "seed": training.get("seed", 42),
        "integrations": None,
        "metadata": None,
        "suffix": None,
    }


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] if value is not None else []
