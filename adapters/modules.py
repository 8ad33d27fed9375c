"""Do the tensors make a LoRA for this base? Names, pairs, ranks and sizes, from the header alone.

Must not know files or engines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from adapters.errors import AdapterRejected
from adapters.peft_config import LoraConfig
from adapters.safetensors import Tensor
from adapters.served import BaseInfo, Shape

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)\.(?P<kind>lora_(embedding_)?[AB])(?P<weight>\.weight)?", re.ASCII
)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.", re.ASCII)
_WHOLE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")  # PEFT adds them; vLLM skips them


@dataclass(frozen=True, slots=True)
class Pair:
    """The two halves of one module's LoRA."""

    module: str  # without base_model.model.
    rank: int
    inputs: int
    outputs: int


def pairs(tensors: Sequence[Tensor], config: LoraConfig) -> tuple[Pair, ...]:
    """Every module that `tensors` adapt, sorted by name; AdapterRejected with the first tensor that does not fit."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if tensor.name.endswith(_WHOLE):
            continue
        module, kind = _parsed(tensor.name)
        if len(tensor.shape) != 2:
            _refuse(
                "tensor_shape", f"{tensor.name} has {len(tensor.shape)} dimensions", "Only linear layers are served."
            )
        halves.setdefault(module, {})[kind] = tensor
    if not halves:
        _refuse("no_lora_tensors", "it has no LoRA tensors", "Check that training saved the adapter.")
    return tuple(_pair(module, halves[module], config) for module in sorted(halves))


def check_fit(found: Sequence[Pair], base: BaseInfo, max_lora_rank: int) -> None:
    """Refuse what this base and its engine's --max-lora-rank cannot take; AdapterRejected."""
    largest = max(found, key=lambda pair: pair.rank)
    if largest.rank > max_lora_rank:
        _refuse(
            "rank_too_large",
            f"{largest.module} has rank {largest.rank} and the engine takes {max_lora_rank}",
            f"Start the engine with --max-lora-rank {_next_rank(largest.rank)}, or train with a smaller lora_rank.",
        )
    if base.shape is not None:
        for pair in found:
            _check_shape(pair, base.id, base.shape)


def _parsed(name: str) -> tuple[str, str]:
    match = _LORA.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if match is None:
        kind = "DoRA" if "lora_magnitude" in name else "not a plain LoRA"
        _refuse("tensor_name", f"tensor {name[:120]} is {kind}", "Train with plain LoRA, no full modules or biases.")
    if ("embedding" in match["kind"]) == (match["weight"] is not None):
        _refuse("tensor_name", f"tensor {name[:120]} is misnamed", "Save the adapter again with PEFT.")
    return match["module"], match["kind"].removeprefix("lora_")


def _pair(module: str, halves: dict[str, Tensor], config: LoraConfig) -> Pair:
    kinds = set(halves)
    if kinds not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
        _refuse("tensor_pair", f"{module} has only {', '.join(sorted(kinds))}", "Save the adapter again with PEFT.")
    a, b = (halves[kind] for kind in sorted(kinds))
    rank = config.rank_of(module)
    if a.shape[0] != rank or b.shape[1] != rank:
        _refuse(
            "rank_mismatch",
            f"{module} has tensors of rank {a.shape[0]} and {b.shape[1]}, its config says {rank}",
            "Config and weights belong to different runs: copy both from one folder.",
        )
    return Pair(module, rank, a.shape[1], b.shape[0])


def _check_shape(pair: Pair, base_id: str, shape: Shape) -> None:
    layer = _LAYER.search(pair.module)
    if layer is not None and int(layer[1]) >= shape.layers:
        _refuse("base_mismatch", f"{pair.module} is beyond the {shape.layers} layers of {base_id}", _OTHER_BASE)
    expected = shape.of(pair.module.rpartition(".")[2])
    if expected is None:
        _refuse("unknown_module", f"{base_id} has no module {pair.module}", _OTHER_BASE)
    if expected != (pair.inputs, pair.outputs):
        what = f"{pair.module} is {pair.inputs} to {pair.outputs}, in {base_id} it is {expected[0]} to {expected[1]}"
        _refuse("base_mismatch", what, _OTHER_BASE)


_OTHER_BASE = "It was trained on another base: train on the served one, or serve that base with --model."


def _next_rank(rank: int) -> int:
    return next(each for each in (8, 16, 32, 64, 128, 256, 320, 512) if each >= rank)


def _refuse(reason: str, what: str, nearest: str) -> NoReturn:
    raise AdapterRejected(f"This adapter cannot be served: {what}. {nearest}", reason=reason)
