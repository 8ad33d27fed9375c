"""What a run takes: memory, disk, time. Arithmetic with its assumptions in view; a measured speed beats a guess.

Weights in the trainer's precision; LoRA's numbers and their gradients and Adam's two moments in 32 bits (LLaMA-Factory
casts what is trained); activations with checkpointing: the edges of every layer, one layer's inside, and the logits,
which are large where the vocabulary is. Not measured on a GPU here. Memory and disk in GiB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.base import Base
from training.facts import GIB, Facts
from training.methods import STAGES, TUNINGS
from training.recipe import Recipe

MB = 1 << 20
START_S = 15.0  # LLaMA-Factory until its first step: 10-25 s on 2 cores (measured), more for large weights
LOAD_BYTES_PER_S = 500 * MB
_GPU_TFLOPS = (("B200", 900), ("H200", 400), ("H100", 400), ("A100", 130), ("L40", 90), ("4090", 70), ("A6000", 60))
_OLD_GPUS = ("V100", "P100", "T4", "RTX 20", "GTX", "TITAN")  # no bfloat16
CPU_TFLOPS_PER_CORE = 0.05
STEP_S = {"cpu": 0.05, "gpu": 0.04}  # what a step costs beside its arithmetic; so the demo takes the minute it does


@dataclass(frozen=True, slots=True)
class Shape:
    """How large one run is."""

    rank: int
    cutoff: int
    per_device: int
    precision: str
    gpus: int


def device(facts: Facts) -> str:
    return "gpu" if facts.hardware.gpus else "cpu"


def precision(recipe: Recipe, facts: Facts) -> tuple[str, str]:
    """What the arithmetic is done in, and why."""
    if recipe.training.precision != "auto":
        return recipe.training.precision, "the recipe says so"
    if not facts.hardware.gpus:
        return "fp32", "on a processor the trainer has nothing faster"
    name = facts.hardware.gpus[0].name
    if any(old in name for old in _OLD_GPUS):
        return "fp16", f"{name} has no bfloat16"
    return "bf16", f"{name} has it, and it cannot overflow"


def trained(recipe: Recipe, base: Base, rank: int) -> int:
    """How many numbers are trained."""
    if recipe.method.tuning == "full":
        return base.parameters
    if recipe.method.tuning == "freeze":
        return round((base.parameters - 2 * base.vocabulary * base.hidden) * _last_layers(recipe, base))
    return base.lora_parameters(rank, recipe.method.target)


def _last_layers(recipe: Recipe, base: Base) -> float:
    return min(1.0, recipe.method.layers / base.layers)


def memory(recipe: Recipe, facts: Facts, shape: Shape) -> dict[str, float]:
    """GiB by what takes it, on each device."""
    base, wide = facts.base, 4 if shape.precision == "fp32" else 2
    shared = shape.gpus if recipe.deepspeed == "zero3" else 1
    split = shape.gpus if recipe.deepspeed else 1
    numbers = trained(recipe, base, shape.rank)
    rows = shape.per_device * (2 if STAGES[recipe.method.stage].data == "preference" else 1)
    tokens = rows * shape.cutoff
    frozen = base.parameters if TUNINGS[recipe.method.tuning].adapter else base.parameters - numbers
    weights = _weights(recipe, base, frozen, wide)
    if STAGES[recipe.method.stage].reference and not TUNINGS[recipe.method.tuning].adapter:
        weights += base.parameters * wide  # the reference stays beside it; with LoRA it is the base without the adapter
    inside = tokens * (10 * base.hidden + 4 * base.intermediate) * wide * (1.5 if recipe.method.tuning != "full" else 1)
    parts = {
        "weights": weights / shared,
        "trained": 4 * numbers / shared,
        "gradients": 4 * numbers / split,
        "optimizer": 8 * numbers / split,
        "activations": tokens * base.hidden * base.layers * wide + inside,
        "logits": tokens * base.vocabulary * (8 + wide),
        "runtime": 1.5 * GIB if device(facts) == "gpu" else 0.9 * GIB,
    }
    return {name: round(size / GIB, 3) for name, size in parts.items()}


def _weights(recipe: Recipe, base: Base, numbers: int, wide: int) -> float:
    if recipe.method.tuning == "qlora":  # embeddings and head stay in 16 bits; NF4 with double quantisation: 4.13 bits
        outside = min(numbers, 2 * base.vocabulary * base.hidden)
        return outside * 2 + (numbers - outside) * (0.516 if recipe.method.bits == 4 else 1.02)
    return float(base.size_bytes) if base.quantised else numbers * wide


def room(facts: Facts) -> float:
    """GiB that a run may take on one device."""
    if facts.hardware.gpus:
        return 0.92 * min(gpu.memory_gb for gpu in facts.hardware.gpus)
    return 0.9 * facts.hardware.memory_gb


def disk(recipe: Recipe, base: Base, rank: int, data_bytes: int, tokens: int, kept: int) -> float:
    """GiB: checkpoints (weights, two moments), the result, the data twice, the tokens."""
    numbers = trained(recipe, base, rank)
    whole = base.size_bytes if not TUNINGS[recipe.method.tuning].adapter else 4 * numbers
    checkpoint = whole + 8 * numbers + 16 * MB
    return round(((kept + 1) * checkpoint + 2 * whole + 2 * data_bytes + 12 * tokens + 64 * MB) / GIB, 3)


def seconds(facts: Facts, steps: int, tokens: int, evaluated: int, gpus: int) -> tuple[float, str]:
    """How long, and where that is known from. evaluated: tokens of all validations."""
    begin = START_S + facts.base.size_bytes / LOAD_BYTES_PER_S
    if facts.tokens_per_s:
        rate = facts.tokens_per_s
        return begin + tokens / rate + evaluated / (3 * rate), f"the last run here did {rate:,.0f} tokens/s"
    kind, flops = device(facts), 1e12 * _tflops(facts) * gpus
    # Forward, forward again (checkpointing), and back through what is frozen: about 6 operations a parameter and token.
    spent = 6 * facts.base.parameters * (tokens + evaluated / 3) / flops
    where = f"{len(facts.hardware.gpus)} GPU" if kind == "gpu" else f"{facts.hardware.cpus} cores"
    return begin + spent + steps * STEP_S[kind], f"a guess from the base's size and {where}; nothing was measured yet"


def _tflops(facts: Facts) -> float:
    """What is really reached, in 10^12 operations a second on one device: about 40 % of the data sheet."""
    if not facts.hardware.gpus:
        return max(facts.hardware.cpus, 1) * CPU_TFLOPS_PER_CORE
    name = facts.hardware.gpus[0].name
    return next((reached for mark, reached in _GPU_TFLOPS if mark in name), 25)


def total(parts: Mapping[str, float]) -> float:
    return round(sum(parts.values()), 2)


def steps_of(rows: int, per_device: int, accumulation: int, gpus: int) -> int:
    """Steps of one epoch, as transformers counts them: the last one may be short."""
    return max(1, math.ceil(math.ceil(rows / (per_device * gpus)) / accumulation))
