"""The body of POST /v1/fine_tuning/jobs, checked field by field, and the recipe that it means.

Must not know keys, files, or who carries it out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from adapters.errors import InvalidRequest, ServiceError
from gateway.errors import UnsupportedParameter
from training.recipe_values import auto_number

Auto = int | float | str  # the string is "auto"
STAGES = {"supervised": "sft", "dpo": "dpo"}
SEED_MAX = 2**31 - 1
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hyperparameters(Strict):
    n_epochs: Annotated[Auto, PlainValidator(auto_number(1, 50, whole=True))] = "auto"
    batch_size: Annotated[Auto, PlainValidator(auto_number(1, 256, whole=True))] = "auto"
    learning_rate_multiplier: Annotated[Auto, PlainValidator(auto_number(0, 1000, above=True))] = "auto"


class DpoHyperparameters(Hyperparameters):
    beta: Annotated[Auto, PlainValidator(auto_number(0, 2, above=True))] = "auto"


class Supervised(Strict):
    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    hyperparameters: DpoHyperparameters | None = None


class Method(Strict):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Any = None


class Tracker(Strict):
    """Where a run of that name is shown."""

    project: str | None = Field(None, max_length=128)
    name: str | None = Field(None, max_length=128)
    entity: str | None = Field(None, max_length=128)
    tags: list[Annotated[str, Field(max_length=64)]] | None = Field(None, max_length=50)


class Integration(Strict):
    type: Literal["wandb", "mlflow", "tensorboard"]
    wandb: Tracker | None = None
    mlflow: Tracker | None = None
    tensorboard: Tracker | None = None


class JobAsked(Strict):
    """As OpenAI takes it, `hyperparameters` at the top for older clients."""

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=128)
    validation_file: str | None = Field(None, max_length=128)
    method: Method | None = None
    hyperparameters: DpoHyperparameters | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, strict=True, ge=0, le=SEED_MAX)
    integrations: list[Integration] | None = Field(None, max_length=5)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )

    @property
    def kind(self) -> str:
        """supervised or dpo."""
        return self.method.type if self.method is not None else "supervised"

    @property
    def chosen(self) -> dict[str, Any]:
        """The hyperparameters of its method: the method's own, else those at the top."""
        own = getattr(self.method, self.kind) if self.method is not None else None
        given = (own.hyperparameters if own is not None else None) or self.hyperparameters or DpoHyperparameters()
        values = DpoHyperparameters.model_validate(given.model_dump()).model_dump()
        return values if self.kind == "dpo" else {name: values[name] for name in values if name != "beta"}


def read(body: dict[str, Any]) -> JobAsked:
    """InvalidRequest, UnsupportedParameter: each names its field."""
    try:
        asked = JobAsked.model_validate(body)
    except ValidationError as error:
        raise _translated(error) from None
    if asked.kind == "reinforcement":
        raise InvalidRequest(
            "Reinforcement fine-tuning is not done here. Use the method supervised, or dpo with preference data.",
            param="method.type",
        )
    others = {"supervised", "dpo", "reinforcement"} - {asked.kind}
    for other in sorted(others):
        if asked.method is not None and getattr(asked.method, other) is not None:
            raise InvalidRequest(
                f"`method.{other}` does not belong to the method {asked.kind}.", param=f"method.{other}"
            )
    if asked.kind == "supervised" and asked.hyperparameters is not None and asked.hyperparameters.beta != "auto":
        raise InvalidRequest("`beta` belongs to the method dpo.", param="hyperparameters.beta")
    return asked


def echoed(asked: JobAsked, seed: int) -> dict[str, Any]:
    """What a job keeps of the request, to be shown again."""
    integrations = [each.model_dump(exclude_none=True) for each in asked.integrations or ()]
    return {
        "model": asked.model,
        "training_file": asked.training_file,
        "validation_file": asked.validation_file,
        "method": {"type": asked.kind, asked.kind: {"hyperparameters": asked.chosen}},
        "seed": seed,
        "integrations": integrations or None,
        "metadata": asked.metadata,
        "suffix": asked.suffix,
    }


def recipe(asked: JobAsked, name: str, seed: int) -> dict[str, Any]:
    """The document of training/recipe.py that this job is; OpenAI's users expect the model to answer at once."""
    chosen = asked.chosen
    multiplier = chosen["learning_rate_multiplier"]
    training = {
        "epochs": chosen["n_epochs"],
        "batch_size": chosen["batch_size"],
        "learning_rate_multiplier": 1.0 if multiplier == "auto" else multiplier,
        "seed": seed,
    }
    if "beta" in chosen:
        training["beta"] = chosen["beta"]
    return {
        "name": name,
        "data": {"train": [{"file": asked.training_file}], "validation": asked.validation_file},
        "method": {"stage": STAGES[asked.kind]},
        "training": training,
        "gate": None,
        "then": "promote",
        "report_to": sorted({each.type for each in asked.integrations or ()}),
    }


def slug(text: str) -> str:
    """Text as a part of a public name."""
    return _SLUG.sub("-", text).strip("-")


def _translated(error: ValidationError) -> ServiceError:
    """The first problem, by its field's path and the rule, never what was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    parts = [str(part) for part in first["loc"] if part not in ("function-plain[<lambda>()]",)]
    param = ".".join(parts) if parts and all(_PLAIN.fullmatch(p) or p.isdigit() for p in parts) else None
    named = f" '{param}'" if param else ""
    if first["type"] == "extra_forbidden":
        return UnsupportedParameter(f"Unknown parameter:{named or ' a field with an odd name'}.", param=param)
    if first["type"] == "missing":
        return InvalidRequest(f"Missing required parameter:{named}.", param=param)
    rule = str(first["msg"]).removeprefix("Value error, ")
    rule = rule if first["type"] != "value_error" else f"it must be {rule}"
    return InvalidRequest(f"Invalid value for{named or ' a parameter'}: {rule[0].lower()}{rule[1:]}.", param=param)
