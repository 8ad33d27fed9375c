"""Refuses, before compute is spent, what could be trained and not served, or not be trained here: with what would work.

Must not choose anything. What is refused whatever the base is stands in training/methods.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.errors import NotServable, RecipeInvalid
from training.facts import DataFacts, Facts
from training.methods import KINDS, STAGES, TUNINGS
from training.recipe import Recipe

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def check(recipe: Recipe, data: DataFacts, facts: Facts) -> None:
    """NotServable, RecipeInvalid: the first reason, its key, and the nearest setting that works."""
    _check_base(recipe, facts)
    _check_data(recipe, data)
    _check_outcome(recipe)
    _check_gate(recipe)
    _check_method(recipe, facts)
    _check_rank(recipe, facts)
    _check_target(recipe, facts)
    _check_training(recipe, data, facts)


def _check_base(recipe: Recipe, facts: Facts) -> None:
    base = facts.base
    if recipe.base is not None and recipe.base not in {base.id, base.short, str(base.folder), *facts.names}:
        raise NotServable(
            f"`base` is {recipe.base}, and {base.id} is served: no adapter of another base works on it. Leave `base` "
            f"out, or serve that one: loragate up --model {recipe.base}.",
            param="base",
        )


def _check_data(recipe: Recipe, data: DataFacts) -> None:
    stage = recipe.method.stage
    needed = STAGES[stage].data
    if data.rows == 0:
        raise RecipeInvalid(
            "No row of `data.train` can be trained on. `loragate datasets check` says why.", param="data.train"
        )
    if data.kind != needed:
        fits = " or ".join(name for name, each in STAGES.items() if each.data == data.kind)
        raise RecipeInvalid(
            f"`method.stage` is {stage}, which learns from {KINDS[needed]}, and the data holds "
            f"{KINDS.get(data.kind, data.kind)}. Use method.stage: {fits or 'sft'}, or other data.",
            param="method.stage",
        )


def _check_outcome(recipe: Recipe) -> None:
    tuning = TUNINGS[recipe.method.tuning]
    if not tuning.adapter and recipe.then != "keep":
        raise NotServable(
            f"`method.tuning` is {recipe.method.tuning}, which makes a whole model and no adapter: it cannot be "
            "registered beside the base. Set `then: keep` and serve the result with --model, or method.tuning: lora.",
            param="then",
        )


def _check_gate(recipe: Recipe) -> None:
    """What the gate is to measure with is there: after the training it would be too late to say so."""
    gate = recipe.gate
    if gate is None:
        return
    for metric, given, what in (
        ("judge", gate.judge, "gate.judge: {url: …, model: …}"),
        ("bertscore", gate.bertscore, "gate.bertscore: {model: FOLDER}"),
    ):
        if gate.metric == metric and given is None:
            raise RecipeInvalid(
                f"`gate.metric` is {metric}, and nothing says with what. Add {what}, or use another metric.",
                param="gate.metric",
            )
    if gate.bertscore is not None and not (Path(gate.bertscore.model) / "config.json").is_file():
        raise RecipeInvalid(
            f"`gate.bertscore.model` is {gate.bertscore.model}, where no encoder is (no config.json). Put one there, "
            "or leave gate.bertscore out.",
            param="gate.bertscore.model",
        )


def _check_method(recipe: Recipe, facts: Facts) -> None:
    method, base = recipe.method, facts.base
    if method.tuning == "qlora" and not facts.hardware.gpus:
        raise RecipeInvalid(
            "`method.tuning` is qlora, and this machine has no GPU: bitsandbytes quantises on one only. Use "
            "method.tuning: lora.",
            param="method.tuning",
        )
    if base.quantised is not None and (method.tuning in ("qlora", "pissa") or not TUNINGS[method.tuning].adapter):
        raise RecipeInvalid(
            f"`method.tuning` is {method.tuning}, and {base.id} is quantised ({base.quantised}) already. Use "
            "method.tuning: lora on it.",
            param="method.tuning",
        )
    if method.tuning == "pissa" and STAGES[method.stage].reference:
        raise RecipeInvalid(
            f"`method.tuning` is pissa, and {method.stage} compares with the base, which PiSSA changes. Use "
            "method.tuning: lora, or method.stage: orpo or simpo.",
            param="method.tuning",
        )
    if method.tuning == "pissa" and recipe.deepspeed == "zero3":
        raise RecipeInvalid("`deepspeed` is zero3, where PiSSA cannot begin. Use deepspeed: zero2.", param="deepspeed")
    if method.tuning == "qlora" and recipe.deepspeed == "zero3":
        raise RecipeInvalid(
            "`deepspeed` is zero3, which splits no 4-bit weights. Use deepspeed: zero2.", param="deepspeed"
        )


def _check_rank(recipe: Recipe, facts: Facts) -> None:
    method, most = recipe.method, facts.max_lora_rank
    if not TUNINGS[method.tuning].adapter or method.rank == "auto":
        return
    grows = TUNINGS[method.tuning].grows
    served = int(method.rank) * grows
    if served <= most:
        return
    larger = next((rank for rank in VLLM_RANKS if rank >= served), None)
    converted = f", {served} once converted," if grows > 1 else ""
    start = f", or start the engine with --max-lora-rank {larger}" if larger is not None else ""
    raise NotServable(
        f"`method.rank` is {method.rank}{converted} and the engine takes ranks up to {most}. Use method.rank: "
        f"{max(1, most // grows)}{start}.",
        param="method.rank",
    )


def _check_target(recipe: Recipe, facts: Facts) -> None:
    base, target = facts.base, recipe.method.target
    if target == ("all",):
        return
    odd = [name for name in target if not re.fullmatch(r"[A-Za-z0-9_.]+", name)]
    known = base.modules()
    outside = {"embed_tokens", "lm_head"} & set(target)
    if outside and not (base.shape is not None and base.shape.embeddings):
        raise NotServable(
            f"`method.target` has {', '.join(sorted(outside))}, and vLLM takes no LoRA on that of a "
            f"{base.family or 'base like this'}. Use method.target: all.",
            param="method.target",
        )
    unknown = odd or ([name for name in target if name not in (*known, *outside)] if known else [])
    if unknown:
        there = f"It has {', '.join(known)}." if known else "Module names are letters, digits, dots and _."
        raise RecipeInvalid(
            f"`method.target` has {unknown[0][:60]}, which the base does not have. {there} Or use all.",
            param="method.target",
        )


def _check_training(recipe: Recipe, data: DataFacts, facts: Facts) -> None:
    training, base = recipe.training, facts.base
    if training.cutoff != "auto" and int(training.cutoff) > base.context:
        raise RecipeInvalid(
            f"`training.cutoff` is {training.cutoff}, and {base.id} takes {base.context} tokens. Use "
            f"training.cutoff: {base.context}, or auto.",
            param="training.cutoff",
        )
    if training.early_stopping is not None and data.valid_rows == 0:
        raise RecipeInvalid(
            "`training.early_stopping` needs rows to watch, and there are none. Set data.validation: 0.1.",
            param="training.early_stopping",
        )
    if training.packing and STAGES[recipe.method.stage].data != "sft":
        raise RecipeInvalid("`training.packing` is for stage sft only. Leave it out.", param="training.packing")
    if training.precision in ("bf16", "fp16") and not facts.hardware.gpus:
        raise RecipeInvalid(
            f"`training.precision` is {training.precision}, and this machine has no GPU. Use auto.",
            param="training.precision",
        )
    if recipe.gpus > max(1, len(facts.hardware.gpus)):
        have = len(facts.hardware.gpus)
        raise RecipeInvalid(
            f"`gpus` is {recipe.gpus}, and this machine has {have}. Use gpus: {max(1, have)}.", param="gpus"
        )
    if recipe.deepspeed is not None and not facts.hardware.gpus:
        raise RecipeInvalid("`deepspeed` needs a GPU, and this machine has none. Leave it out.", param="deepspeed")
    if recipe.method.stage == "kto" and training.batch_size != "auto" and int(training.batch_size) < 2 * recipe.gpus:
        raise RecipeInvalid(
            f"`training.batch_size` is {training.batch_size}, and KTO compares rows of one batch: use at least "
            f"{2 * recipe.gpus}.",
            param="training.batch_size",
        )
