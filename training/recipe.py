"""A recipe: what somebody wants trained, on what, how, and what becomes of it. Read from YAML, checked key by key.

Every refusal names the key and says what would be right. Must not know the base, the machine or the data: what fits
those is decided in training/plan.py. docs/recipes.md is the schema for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from adapters.errors import InvalidName
from adapters.names import check_public_name
from training import methods
from training.errors import RecipeInvalid
from training.recipe_errors import translated
from training.recipe_values import Number, auto_number, number, one_of, text, texts, yaml_document

FILE_ID = re.compile(r"file-[0-9A-Za-z]{8,64}")
METRICS = ("auto", "exact_match", "rouge_l", "chrf", "bleu", "bertscore", "perplexity", "judge")
SCHEDULERS = ("auto", "cosine", "linear", "constant", "constant_with_warmup")
TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "swanlab", "trackio")
_NAME = "a public name such as customer-service: letters, digits and . _ : -, at most 128 of them"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """One file of several. weight: how often each of its rows is taken (0.5: half of them); cap: at most so many."""

    file: Annotated[str, PlainValidator(text("a path or a file's id"))]
    weight: Annotated[float, PlainValidator(number(0, 1000, above=True))] = 1.0
    cap: Annotated[int | None, PlainValidator(number(1, 10**9, whole=True, none=True))] = None


def _sources(given: Any) -> tuple[Source, ...]:
    """A path, or a list of paths and sections, as sections."""
    found = given if isinstance(given, list | tuple) else [given]
    if not found or not all(isinstance(each, str | Mapping | Source) for each in found):
        raise ValueError("a path, a file's id, or a list of {file, weight, cap}")
    return tuple(
        each if isinstance(each, Source) else Source.model_validate({"file": each} if isinstance(each, str) else each)
        for each in found
    )


def _validation(given: Any) -> Any:
    if given is None or (isinstance(given, str) and given.strip()):
        return given
    return number(0, 0.5, above=True, what="a share such as 0.1 (at most 0.5), a path, a file's id, or null")(given)


class DataSection(Section):
    """What is trained on. Relative paths count from the recipe's own folder."""

    train: Annotated[tuple[Source, ...], BeforeValidator(_sources)]
    validation: Annotated[float | str | None, PlainValidator(_validation)] = None
    form: Annotated[str | None, PlainValidator(text("the name of a form, or null to guess it", none=True))] = None
    columns: dict[str, str] = Field(default_factory=dict)
    system: Annotated[str | None, PlainValidator(text("a system message, or null", none=True))] = None
    max_dropped: Annotated[float, PlainValidator(number(0, 1))] = 0.05


class Method(Section):
    """How: docs/recipes.md has a table of what vLLM can serve of it."""

    stage: Annotated[str, PlainValidator(one_of(tuple(methods.STAGES)))] = "sft"
    tuning: Annotated[str, PlainValidator(one_of(tuple(methods.TUNINGS)))] = "lora"
    rank: Annotated[Number, PlainValidator(auto_number(1, 512, whole=True))] = "auto"
    alpha: Annotated[Number, PlainValidator(auto_number(0, 4096, above=True))] = "auto"
    dropout: Annotated[float, PlainValidator(number(0, 0.9))] = 0.0
    target: Annotated[tuple[str, ...], PlainValidator(texts("all, or a list of modules such as [q_proj, v_proj]"))] = (
        "all",
    )
    bits: Annotated[int, PlainValidator(one_of((4, 8)))] = 4
    lora_plus_ratio: Annotated[float, PlainValidator(number(1, 256))] = 16.0
    layers: Annotated[int, PlainValidator(number(1, 1000, whole=True))] = 2


class Training(Section):
    """Hyper-parameters: numbers, or `auto` for what the plan recommends."""

    epochs: Annotated[Number, PlainValidator(auto_number(0, 10_000, above=True))] = "auto"
    max_steps: Annotated[int | None, PlainValidator(number(1, 10**8, whole=True, none=True))] = None
    batch_size: Annotated[Number, PlainValidator(auto_number(1, 4096, whole=True))] = "auto"
    learning_rate: Annotated[Number, PlainValidator(auto_number(0, 1, above=True))] = "auto"
    learning_rate_multiplier: Annotated[float, PlainValidator(number(0, 1000, above=True))] = 1.0
    scheduler: Annotated[str, PlainValidator(one_of(SCHEDULERS))] = "auto"
    warmup: Annotated[Number, PlainValidator(auto_number(0, 10**6))] = "auto"
    cutoff: Annotated[Number, PlainValidator(auto_number(16, 2**21, whole=True))] = "auto"
    packing: Annotated[bool, PlainValidator(one_of((True, False)))] = False
    weight_decay: Annotated[float, PlainValidator(number(0, 1))] = 0.0
    precision: Annotated[str, PlainValidator(one_of(("auto", "bf16", "fp16", "fp32")))] = "auto"
    early_stopping: Annotated[int | None, PlainValidator(number(1, 1000, whole=True, none=True))] = None
    save_steps: Annotated[Number, PlainValidator(auto_number(1, 10**8, whole=True))] = "auto"
    logging_steps: Annotated[Number, PlainValidator(auto_number(1, 10**6, whole=True))] = "auto"
    seed: Annotated[int, PlainValidator(number(0, 2**31 - 1, whole=True))] = 42
    beta: Annotated[Number, PlainValidator(auto_number(0, 100, above=True))] = "auto"
    gamma: Annotated[Number, PlainValidator(auto_number(0, 100))] = "auto"


class Judge(Section):
    """Another model that compares answers, through any OpenAI-compatible endpoint."""

    url: Annotated[str, PlainValidator(text("an address such as https://host/v1"))]
    model: Annotated[str, PlainValidator(text("a model's name there"))]
    key_env: Annotated[str | None, PlainValidator(text("the name of an environment variable", none=True))] = None


class Encoder(Section):
    """What BERTScore is computed with: an encoder in a folder of the worker's machine."""

    model: Annotated[str, PlainValidator(text("the folder of an encoder"))]
    layer: Annotated[int | None, PlainValidator(number(0, 1000, whole=True, none=True))] = None


class Gate(Section):
    """What a new version has to show before it may answer anybody."""

    metric: Annotated[str, PlainValidator(one_of(METRICS))] = "auto"
    min_gain: Annotated[float, PlainValidator(number(-1, 1))] = 0.0
    max_forgetting: Annotated[float | None, PlainValidator(number(0, 10, none=True))] = None
    no_regression_on: Annotated[str | None, PlainValidator(text("a path or a file's id", none=True))] = None
    max_rows: Annotated[int, PlainValidator(number(1, 100_000, whole=True))] = 200
    judge: Judge | None = None
    bertscore: Encoder | None = None


class CanaryShare(Section):
    canary: Annotated[float, PlainValidator(number(0, 100, above=True, what="a percentage above 0, at most 100"))]


def _then(given: Any) -> Any:
    if given in ("register", "promote", "keep") or isinstance(given, CanaryShare):
        return given
    if isinstance(given, Mapping) and set(given) == {"canary"}:
        return CanaryShare.model_validate(dict(given))
    raise ValueError("register, promote, keep, or {canary: 10}")


def _named(name: str) -> str:
    try:
        return check_public_name(name)
    except InvalidName:
        raise ValueError(_NAME) from None


class Recipe(Section):
    """The whole of it. `then`: register, promote, {canary: percent}, or keep (in the job's folder, as a model)."""

    name: Annotated[str, PlainValidator(text(_NAME)), AfterValidator(_named)]
    base: Annotated[str | None, PlainValidator(text("the served base's id, or null", none=True))] = None
    template: Annotated[str | None, PlainValidator(text("a template of LLaMA-Factory, or null", none=True))] = None
    data: DataSection
    method: Method = Method()
    training: Training = Training()
    gate: Gate | None = Gate()
    then: Annotated[Literal["register", "promote", "keep"] | CanaryShare, BeforeValidator(_then)] = "register"
    report_to: Annotated[tuple[str, ...], PlainValidator(texts("a list of " + ", ".join(TRACKERS), TRACKERS))] = ()
    gpus: Annotated[int, PlainValidator(number(1, 64, whole=True))] = 1
    deepspeed: Annotated[str | None, PlainValidator(one_of((None, "zero2", "zero3")))] = None
    pause_engine: Annotated[bool, PlainValidator(one_of((True, False)))] = False

    def document(self) -> dict[str, Any]:
        """As JSON: what a job keeps, and `parse` reads again."""
        return dict(json.loads(json.dumps(self.model_dump())))  # as JSON it warns of our tuples

    @property
    def wants_canary(self) -> float | None:
        """The share of callers, in percent, that the new version shall answer first."""
        return self.then.canary if isinstance(self.then, CanaryShare) else None


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file; `changes` such as training.epochs=3 come last. RecipeInvalid, NotServable."""
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is not text"
        raise RecipeInvalid(f"The recipe {path} cannot be read: {why}.") from None
    document = yaml_document(raw, str(path))
    for change in changes:
        _change(document, change)
    return _beside(parse(document), path.absolute().parent)


def parse(document: Mapping[str, Any]) -> Recipe:
    """The recipe of a document. RecipeInvalid; NotServable for a method whose result no engine here could serve."""
    methods.refuse(document)
    _no_interpolation(document, "")
    try:
        return Recipe.model_validate(dict(document))
    except ValidationError as exc:
        raise translated(exc, Recipe) from None


def _change(document: dict[str, Any], change: str) -> None:
    """Set one value of a nested document from `a.b=value`, the value read as YAML."""
    key, equals, value = change.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise RecipeInvalid(f"{change[:80]} is no change. Write --set training.epochs=3.")
    inner: Any = document
    for section in sections:
        inner = inner.setdefault(section, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        raise RecipeInvalid(f"`{key[:80]}` is no setting: {'.'.join(sections)} is not a section.", param=key[:80])
    try:
        inner[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeInvalid(f"The value of `{key[:80]}` is not YAML. Put it in quotes.", param=key[:80]) from None


def _no_interpolation(value: Any, key: str) -> None:
    """LLaMA-Factory's OmegaConf would take `${…}` for a reference into its own settings, or fail on it."""
    if isinstance(value, str) and "${" in value:
        raise RecipeInvalid(
            f"`{key}` holds ${{, which the trainer reads as a reference. Write the value out.", param=key
        )
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        _no_interpolation(each, f"{key}.{name}" if key else str(name))


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every file named absolutely; ids of uploaded files stay."""

    def absolute(name: str) -> str:
        return name if FILE_ID.fullmatch(name) else str((folder / name).resolve())

    train = tuple(each.model_copy(update={"file": absolute(each.file)}) for each in recipe.data.train)
    changed: dict[str, Any] = {"train": train}
    if isinstance(recipe.data.validation, str):
        changed["validation"] = absolute(recipe.data.validation)
    data = recipe.data.model_copy(update=changed)
    gate = recipe.gate
    if gate is not None and gate.no_regression_on is not None:
        gate = gate.model_copy(update={"no_regression_on": absolute(gate.no_regression_on)})
    return recipe.model_copy(update={"data": data, "gate": gate})
