"""Adapter folders made by code: a good one as LLaMA-Factory leaves it, and the means to spoil it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PREFIX = "base_model.model.model.layers."
Tensors = list[tuple[str, str, list[int], bytes]]  # name, dtype, shape, data

# PEFT 0.18's full set of keys, as LLaMA-Factory 0.9.5 writes it.
CONFIG: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "/runs/demo-base",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.18.1",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["v_proj", "q_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}
BASE_CONFIG: Mapping[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def bf16(*values: float) -> bytes:
    """Little-endian bfloat16: the upper half of a float32."""
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def numbers(count: int, seed: int = 0) -> bytes:
    """`count` small bfloat16 numbers, none of them zero."""
    return bf16(*((1 + (at + seed) % 7) / 8 for at in range(count)))


def pair(module: str, inputs: int, outputs: int, rank: int = 8, seed: int = 0) -> Tensors:
    """A LoRA of one linear layer."""
    return [
        (f"{module}.lora_A.weight", "BF16", [rank, inputs], numbers(rank * inputs, seed)),
        (f"{module}.lora_B.weight", "BF16", [outputs, rank], numbers(rank * outputs, seed + 1)),
    ]


def usual(rank: int = 8, seed: int = 0) -> Tensors:
    """q_proj and v_proj of both layers of BASE_CONFIG."""
    made: Tensors = []
    for layer in range(2):
        made += pair(f"{PREFIX}{layer}.self_attn.q_proj", 32, 32, rank, seed)
        made += pair(f"{PREFIX}{layer}.self_attn.v_proj", 32, 16, rank, seed)
    return made


def header_of(tensors: Tensors) -> dict[str, Any]:
    """The header that fits `tensors` written in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return header


def packed(header: Any, data: bytes) -> bytes:
    """A safetensors file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(tensors: Tensors) -> bytes:
    """A true safetensors file."""
    return packed(header_of(tensors), b"".join(each[3] for each in tensors))


def write(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
    without: Iterable[str] = (),
) -> Path:
    """A good adapter folder; `config` overrides keys, `without` removes keys, `tensors` replaces the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {key: value for key, value in {**CONFIG, **(config or {})}.items() if key not in set(without)}
    (folder / "adapter_config.json").write_text(json.dumps(table))
    (folder / "adapter_model.safetensors").write_bytes(weights(usual() if tensors is None else tensors))
    return folder


def write_base(folder: Path, **overrides: Any) -> Path:
    """A base model's folder, as far as adapters are checked against it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**BASE_CONFIG, **overrides}))
    return folder
