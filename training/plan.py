"""The plan of a run: every `auto` decided with its reason, what it will take, and a refusal before compute is spent.

Pure: from a recipe, facts of the data and facts of the place to settings. Must not know files of a job or processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from training import estimate, servable, template, trainyaml
from training.auto import Chooser
from training.errors import RecipeInvalid
from training.estimate import Shape
from training.facts import DataFacts, Facts
from training.fit import fit
from training.methods import STAGES, TUNINGS
from training.recipe import Recipe

KEPT_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class Settled:
    """llamafactory: its settings, complete but for paths; tokens: of the whole run, after the cut; memory: GiB by part.

    served: "adapter" or "model"; adapter_folder: where in the output it lies; rank: as served, None for a model.
    chat_template_kwargs: what every request to the adapter needs, as it was trained so. valid: is there a validation.
    """

    name: str
    base: str
    llamafactory: Mapping[str, Any]
    rows: int
    dropped: int
    valid_rows: int
    epochs: float
    steps: int
    tokens: int
    truncated_rows: int
    truncated_tokens: int
    memory_gb: float
    memory: Mapping[str, float]
    disk_gb: float
    seconds: float
    device: str
    gpus: int
    deepspeed: Mapping[str, Any] | None
    template: str | None
    chat_template_kwargs: Mapping[str, Any]
    served: str
    adapter_folder: str
    rank: int | None
    early_stopping: bool
    notes: tuple[str, ...] = field(default_factory=tuple)

    def document(self) -> dict[str, Any]:
        """As JSON: what the job keeps as `settled`."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "notes": tuple(document["notes"])})


def settle(recipe: Recipe, data: DataFacts, facts: Facts) -> Settled:
    """The plan. RecipeInvalid, NotServable: with the key, and the nearest setting that works."""
    servable.check(recipe, data, facts)
    choose = Chooser(recipe, data, facts.base, facts.max_lora_rank)
    chosen = template.choose(facts.base, recipe.template)
    choose.note(f"template = {chosen.name or 'the chat template'}: {chosen.reason}.")
    precision, why = estimate.precision(recipe, facts)
    choose.note(f"training.precision = {precision}: {why}.")
    rank, cutoff = choose.rank(), choose.cutoff()
    batch = choose.batch_size()
    shape, shortened = fit(recipe, data, facts, batch, Shape(rank, cutoff, 1, precision, recipe.gpus))
    cutoff = shape.cutoff
    if shortened is not None:
        choose.note(shortened)
    accumulation = max(1, round(batch / (shape.per_device * recipe.gpus)))
    on_each = f" on each of {recipe.gpus} GPUs" if recipe.gpus > 1 else ""
    times = "once" if accumulation == 1 else f"{accumulation} times"
    choose.note(f"A step reads {shape.per_device} rows together{on_each}, {times}: what fits the memory.")
    per_epoch = estimate.steps_of(data.rows, shape.per_device, accumulation, recipe.gpus)
    epochs = choose.epochs(per_epoch)
    steps = recipe.training.max_steps or math.ceil(epochs * per_epoch)
    cut_rows, cut_tokens = data.cut_at(cutoff)
    sequences = 2 if data.kind == "preference" else 1  # both answers of a pair are read, each behind the prompt
    tokens = round(sequences * (data.tokens - cut_tokens) * steps / per_epoch)
    looks = round(data.valid_rows * data.tokens / data.rows) * min(steps, 10)  # at about ten checkpoints
    seconds, source = estimate.seconds(facts, steps, tokens, looks, recipe.gpus)
    choose.note(f"The time is {source}.")
    numbers = _Numbers(rank, cutoff, shape.per_device, accumulation, epochs, steps, seconds)
    settings = _settings(recipe, data, choose, chosen, precision, numbers)
    _warn(choose, recipe, data, facts, cut_rows, cut_tokens, chosen)
    parts = estimate.memory(recipe, facts, shape)
    disk = estimate.disk(recipe, facts.base, rank, data.size_bytes, data.tokens, KEPT_CHECKPOINTS)
    _check_disk(facts, disk)
    tuning = TUNINGS[recipe.method.tuning]
    return Settled(
        name=recipe.name,
        base=facts.base.id,
        llamafactory=trainyaml.checked(settings),
        rows=data.rows,
        dropped=data.dropped,
        valid_rows=data.valid_rows,
        epochs=epochs,
        steps=steps,
        tokens=tokens,
        truncated_rows=cut_rows,
        truncated_tokens=cut_tokens,
        memory_gb=estimate.total(parts),
        memory=parts,
        disk_gb=disk,
        seconds=round(seconds, 1),
        device=estimate.device(facts),
        gpus=recipe.gpus if facts.hardware.gpus else 0,
        deepspeed=trainyaml.deepspeed_document(recipe.deepspeed) if recipe.deepspeed else None,
        template=chosen.name,
        chat_template_kwargs=dict(chosen.kwargs),
        served="adapter" if tuning.adapter else "model",
        adapter_folder=tuning.folder,
        rank=rank * tuning.grows if tuning.adapter else None,
        early_stopping=recipe.training.early_stopping is not None,
        notes=tuple(choose.notes),
    )


@dataclass(frozen=True, slots=True)
class _Numbers:
    rank: int
    cutoff: int
    per_device: int
    accumulation: int
    epochs: float
    steps: int
    seconds: float


def _check_disk(facts: Facts, disk: float) -> None:
    free = facts.hardware.disk_free_gb
    if free is not None and disk > free:
        raise RecipeInvalid(
            f"It needs about {disk:.1f} GB of disk and {free:.1f} GB are free. Free some, or choose another --data-dir."
        )


def _settings(
    recipe: Recipe,
    data: DataFacts,
    choose: Chooser,
    chosen: template.Template,
    precision: str,
    numbers: _Numbers,
) -> dict[str, Any]:
    """LLaMA-Factory's keys; its defaults that hurt (logging and saving every 500 steps, batch 8) are all written."""
    training, steps = recipe.training, numbers.steps
    settings: dict[str, Any] = {
        **STAGES[recipe.method.stage].keys,
        "do_train": True,
        **_method(recipe, choose, numbers),
    }
    if chosen.name is not None:
        settings["template"] = chosen.name
    if chosen.system is not None:
        settings["default_system"] = chosen.system
    if chosen.thinking is not None:
        settings["enable_thinking"] = chosen.thinking
    if data.mask_history or (data.multi_turn and chosen.by_answer):
        settings["mask_history"] = True
    settings |= {
        "cutoff_len": numbers.cutoff,
        "per_device_train_batch_size": numbers.per_device,
        "per_device_eval_batch_size": numbers.per_device,
        "gradient_accumulation_steps": numbers.accumulation,
        "learning_rate": choose.learning_rate(),
        "lr_scheduler_type": choose.scheduler(),
        "num_train_epochs": numbers.epochs,
        "warmup_steps": choose.warmup(steps),
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "data_seed": training.seed,
        "logging_steps": choose.logging_steps(steps),
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": choose.save_steps(steps, numbers.seconds),
        "save_total_limit": KEPT_CHECKPOINTS,
        "include_num_input_tokens_seen": True,
        "plot_loss": False,
        "report_to": list(recipe.report_to) or "none",
    }
    if training.max_steps is not None:
        settings["max_steps"] = training.max_steps
    if precision in ("bf16", "fp16"):
        settings[precision] = True
    if training.packing:
        settings["packing"] = True
    if recipe.gpus > 1:
        settings["ddp_timeout"] = 180_000_000
    elif _saves_at_once(recipe):
        settings["enable_jit_checkpoint"] = True
    return settings | _preference(choose) | _validation(recipe, data, int(settings["save_steps"]))


def _saves_at_once(recipe: Recipe) -> bool:
    """Whether SIGTERM may make the trainer save where it is: one process, whose end cannot be taken for its own.

    It saves with the chance of the next step drawn already, which changes nothing where nothing is left to chance.
    """
    return recipe.deepspeed is None and recipe.training.early_stopping is None and not recipe.method.dropout


def _method(recipe: Recipe, choose: Chooser, numbers: _Numbers) -> dict[str, Any]:
    method, tuning = recipe.method, TUNINGS[recipe.method.tuning]
    keys = dict(tuning.keys)
    if tuning.adapter:
        target = "all" if method.target == ("all",) else ",".join(method.target)
        alpha = choose.alpha(numbers.rank)
        keys |= {
            "lora_rank": numbers.rank,
            "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
            "lora_dropout": method.dropout,
            "lora_target": target,
        }
    if method.tuning == "lora+":
        keys["loraplus_lr_ratio"] = method.lora_plus_ratio
    if method.tuning == "qlora":
        keys["quantization_bit"] = method.bits
    if method.tuning == "freeze":
        keys["freeze_trainable_layers"] = method.layers
    return keys


def _preference(choose: Chooser) -> dict[str, Any]:
    beta = choose.beta()
    if beta is None:
        return {}
    gamma = choose.gamma(beta)
    return {"pref_beta": beta} | ({"simpo_gamma": gamma} if gamma is not None else {})


def _validation(recipe: Recipe, data: DataFacts, every: int) -> dict[str, Any]:
    """Looked at whenever a checkpoint is written; with early stopping the best of them is the result."""
    if not data.valid_rows:
        return {"eval_strategy": "no"}
    keys: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": every}
    if recipe.method.stage == "sft":
        keys["compute_accuracy"] = True  # of tokens: what OpenAI's checkpoints tell
    if recipe.training.early_stopping is not None:
        keys |= {"early_stopping_steps": recipe.training.early_stopping, "load_best_model_at_end": True}
    return keys


def _warn(
    choose: Chooser,
    recipe: Recipe,
    data: DataFacts,
    facts: Facts,
    cut_rows: int,
    cut_tokens: int,
    chosen: template.Template,
) -> None:
    if cut_rows:
        most, whole = facts.base.context, data.longest + 2
        keeps = f"training.cutoff: {min(whole, most)} would keep {'all' if whole <= most else 'more'}."
        choose.note(
            f"{cut_rows:,} of {data.rows:,} rows are longer than the cutoff and lose {cut_tokens:,} tokens. {keeps}"
        )
    if data.multi_turn and chosen.by_answer and not data.mask_history:
        choose.note(
            "Only the last answer of a conversation is trained (mask_history): the base's chat template shows earlier "
            "answers without their thinking, as LLaMA-Factory does only then."
        )
    if recipe.method.tuning == "qlora":
        choose.note("It is trained on 4-bit weights and served on 16-bit ones: answers can differ slightly.")
    if data.rows < 10:
        choose.note(f"{data.rows} rows are very few. OpenAI asks for at least 10, and 50 to 100 show an effect.")
