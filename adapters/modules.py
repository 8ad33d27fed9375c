"""Do the tensors make a LoRA for this base? Names, pairs, ranks and sizes, from the header alone.

What vLLM 0.32 does not say: it leaves out modules that the base does not have, and takes tensors that are too small
for their module, both without a word (tried). Must not know files or engines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.peft_config import LoraConfig
from adapters.safetensors import Tensor
from adapters.served import BaseInfo, Shape
from adapters.verdict import Findings

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)\.(?P<kind>lora_(embedding_)?[AB])(?P<weight>\.weight)?", re.ASCII
)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.", re.ASCII)
_PADDED = re.compile(r"(?:^|\.)0\d", re.ASCII)
_WHOLE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")  # PEFT adds them; vLLM skips them
_EMBEDDINGS = (".embed_tokens.weight", ".lm_head.weight", ".embed_tokens.modules_to_save.weight")
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank can be (config/lora.py)

_SAVE = "Save the adapter again with PEFT's save_pretrained."
_OTHER_BASE = "It was trained on another base: train on the served one, or serve that base with --model."
_MERGE = "Train again without it, or merge the adapter into the base and serve that with --model."
_SPLIT = "Save it with save_pretrained(save_embedding_layers=False)."
_RESIZED = "Train with resize_vocab: false and without new tokens, or merge it and serve that with --model."


@dataclass(frozen=True, slots=True)
class Pair:
    """The two halves of one module's LoRA."""

    module: str  # without base_model.model.
    rank: int
    inputs: int
    outputs: int
    tensors: tuple[str, str]  # their names, A and B


def pairs(
    tensors: Sequence[Tensor], config: LoraConfig | None, shape: Shape | None, findings: Findings
) -> tuple[Pair, ...]:
    """Every module that `tensors` adapt and whose two halves fit, sorted by name; all else goes into `findings`.

    config: None where its rank is not sound; then ranks are not compared. shape: of the base, for better sentences.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if tensor.name.endswith(_WHOLE):
            _whole(tensor, shape, findings)
            continue
        parsed = _parsed(tensor, shape, findings)
        if parsed is None:
            continue
        module, kind = parsed
        if len(tensor.shape) != 2:
            what = f"{tensor.name} has {len(tensor.shape)} dimensions"
            _refuse(findings, "tensor_shape", what, f"Only linear layers are served. {_MERGE}")
        halves.setdefault(module, {})[kind] = tensor
    if not halves and not findings.refused:
        _refuse(findings, "no_lora_tensors", "it has no LoRA tensors", "Check that training saved the adapter.")
    found = (_pair(module, halves[module], config, findings) for module in sorted(halves))
    return tuple(pair for pair in found if pair is not None)


def check_fit(found: Sequence[Pair], base: BaseInfo | None, max_lora_rank: int, findings: Findings) -> None:
    """What this base and its engine's --max-lora-rank cannot take goes into `findings`."""
    largest = max(found, key=lambda pair: pair.rank, default=None)
    if largest is not None and largest.rank > max_lora_rank:
        _refuse(
            findings,
            "rank_too_large",
            f"{largest.module} has rank {largest.rank} and the engine takes {max_lora_rank}",
            _larger(largest.rank),
        )
    if base is not None and base.shape is not None:
        for pair in found:
            _check_shape(pair, base.id, base.shape, findings)


def _larger(rank: int) -> str:
    enough = next((each for each in _RANKS if each >= rank), None)
    if enough is None:
        return f"vLLM's largest rank is {_RANKS[-1]}: train with a smaller lora_rank."
    return (
        f"Start the engine with --max-lora-rank {enough} and set adapters.max_lora_rank: {enough}, "
        "or train with a smaller lora_rank."
    )


def _parsed(tensor: Tensor, shape: Shape | None, findings: Findings) -> tuple[str, str] | None:
    """Module and kind of a tensor's name; None where it is none of a LoRA."""
    name = tensor.name
    match = _LORA.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if match is None:
        _odd(tensor, shape, findings)
        return None
    module = match["module"]
    if ("embedding" in match["kind"]) == (match["weight"] is not None):
        _refuse(findings, "tensor_name", f"tensor {name[:120]} is misnamed", _SAVE)
        return None
    # vLLM takes the prefix out wherever it stands (lora/utils.py), so two names here could be one module there.
    if _PREFIX in f"{module}." or _PADDED.search(module):
        nearest = "Train on the base itself, not on an adapter of it, and save that with PEFT."
        _refuse(findings, "tensor_name", f"tensor {name[:120]} is not named as PEFT names modules", nearest)
        return None
    return module, match["kind"].removeprefix("lora_")


def _odd(tensor: Tensor, shape: Shape | None, findings: Findings) -> None:
    name = tensor.name
    shown = f"tensor {name[:120]}"
    if "lora_magnitude" in name:
        _refuse(findings, "dora", f"{shown} is DoRA's, which vLLM does not have", _MERGE)
    elif "v_head." in name or "value_head." in name or name.endswith((".score.weight", ".classifier.weight")):
        nearest = "It scores answers and does not write them. Register an adapter of stage sft, dpo or kto."
        _refuse(findings, "reward_model", f"{shown} is a value or classifier head", nearest)
    elif name.endswith(_EMBEDDINGS):
        _whole(tensor, shape, findings)
    elif ".default." in name or name.endswith(".default"):
        _refuse(findings, "tensor_name", f"{shown} still has its adapter's name", _SAVE)
    elif ".modules_to_save." in name:
        _refuse(findings, "modules_to_save", f"{shown} is a whole module", _MERGE)
    elif name.endswith((".bias", ".lora_B.bias")):
        _refuse(findings, "bias", f"{shown} is a bias, which vLLM's LoRA does not have", "Train with bias: none.")
    elif "trainable_tokens" in name:
        _refuse(findings, "trainable_tokens", f"{shown} is of new tokens", _RESIZED)
    elif ".lora_" in name and not name.startswith(_PREFIX):
        _refuse(findings, "tensor_name", f"{shown} does not begin with {_PREFIX}", _SAVE)
    else:
        _refuse(findings, "tensor_name", f"{shown} is not of a plain LoRA", _MERGE)


def _whole(tensor: Tensor, shape: Shape | None, findings: Findings) -> None:
    """An embedding that PEFT saved with the adapter, because LoRA is on it or because it grew."""
    rows = tensor.shape[0]
    if shape is not None and rows != shape.vocabulary:
        what = f"the vocabulary was resized from {shape.vocabulary} to {rows} tokens"
        _refuse(findings, "vocabulary_resized", what, _RESIZED)
    elif tensor.name.endswith(_EMBEDDINGS):
        what = f"tensor {tensor.name[:120]} is the whole embedding, which vLLM does not take with a LoRA"
        _refuse(findings, "embedding_weights", what, f"{_SPLIT} If the vocabulary was resized: {_lower(_RESIZED)}")
    else:
        what = f"It carries the base's embedding ({tensor.end - tensor.begin} bytes), which vLLM reads and leaves out."
        findings.warn("embedding_unused", what, _SPLIT)


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _pair(module: str, halves: dict[str, Tensor], config: LoraConfig | None, findings: Findings) -> Pair | None:
    kinds = set(halves)
    if kinds not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
        shown = ", ".join(f"lora_{kind}" for kind in sorted(kinds))
        _refuse(findings, "tensor_pair", f"{module} has {shown}, not one A and one B", _SAVE)
        return None
    a, b = (halves[kind] for kind in sorted(kinds))
    if len(a.shape) != 2 or len(b.shape) != 2:
        return None
    rank = config.rank_of(module) if config is not None else a.shape[0]
    if a.shape[0] != rank or b.shape[1] != rank:
        says = f"its config says {rank}" if config is not None else "which differ"
        _refuse(
            findings,
            "rank_mismatch",
            f"{module} has tensors of rank {a.shape[0]} and {b.shape[1]}, {says}",
            "Config and weights belong to different runs: copy both from one folder.",
        )
        return None
    return Pair(module, rank, a.shape[1], b.shape[0], (a.name, b.name))


def _check_shape(pair: Pair, base_id: str, shape: Shape, findings: Findings) -> None:
    expected = shape.of(pair.module)
    if expected is None:
        _refuse_unknown(pair, base_id, shape, findings)
    elif expected != (pair.inputs, pair.outputs):
        what = f"{pair.module} is {pair.inputs} to {pair.outputs}, in {base_id} it is {expected[0]} to {expected[1]}"
        if pair.module in shape.outside() and shape.hidden in (pair.inputs, pair.outputs):
            _refuse(findings, "vocabulary_resized", what, _RESIZED)
        else:
            _refuse(findings, "base_mismatch", what, _OTHER_BASE)
    elif pair.module in shape.outside() and not shape.embeddings:
        what = f"vLLM does not take LoRA on {pair.module} of {shape.family} models"
        _refuse(findings, "embedding_lora", what, f"Leave it out of lora_target. {_MERGE}")


def _refuse_unknown(pair: Pair, base_id: str, shape: Shape, findings: Findings) -> None:
    layer = _LAYER.search(pair.module)
    if layer is not None and int(layer[1]) >= shape.layers:
        what = f"{pair.module} is beyond the {shape.layers} layers of {base_id}"
        _refuse(findings, "base_mismatch", what, _OTHER_BASE)
    else:
        _refuse(findings, "unknown_module", f"{base_id} has no module {pair.module}", _OTHER_BASE)


def _refuse(findings: Findings, reason: str, what: str, nearest: str) -> None:
    findings.refuse(reason, f"This adapter cannot be served: {what}.", nearest)
