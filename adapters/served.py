"""The base model that adapters are checked against: what its engine says, and its config.json where we can read it.

Must not know adapters. Missing knowledge is None, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 1024 * 1024
# Architectures whose linear layers have the plain names and shapes below; others are not checked by shape.
# True: vLLM 0.32 takes LoRA on embed_tokens and lm_head of it (`embedding_modules` in its model_executor/models).
_DENSE = {"llama": True, "mistral": False, "qwen2": False, "qwen3": True, "gemma": False, "gemma2": False}
_IN_LAYER = re.compile(
    r"model\.layers\.(?P<layer>0|[1-9]\d{0,5})\.(?P<name>self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a dense decoder, from its config.json."""

    hidden: int
    intermediate: int
    layers: int
    query: int  # heads x head size
    key_value: int  # key-value heads x head size
    vocabulary: int
    family: str = ""  # model_type
    embeddings: bool = False  # whether vLLM takes LoRA on embed_tokens and lm_head of this family

    def of(self, module: str) -> tuple[int, int] | None:
        """(inputs, outputs) of the module with this whole name; None where there is no such."""
        at = _IN_LAYER.fullmatch(module)
        if at is None:
            return self.outside().get(module)
        return self.in_layer()[at["name"]] if int(at["layer"]) < self.layers else None

    def in_layer(self) -> dict[str, tuple[int, int]]:
        """The linear modules of every layer."""
        return {
            "self_attn.q_proj": (self.hidden, self.query),
            "self_attn.k_proj": (self.hidden, self.key_value),
            "self_attn.v_proj": (self.hidden, self.key_value),
            "self_attn.o_proj": (self.query, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    def outside(self) -> dict[str, tuple[int, int]]:
        """What is there once."""
        return {"model.embed_tokens": (self.vocabulary, self.hidden), "lm_head": (self.hidden, self.vocabulary)}

    def slot_bytes(self, rank: int) -> int:
        """What one adapter slot of an engine with --max-lora-rank `rank` takes, in bytes, at two bytes a number.

        vLLM 0.32 sets it aside at start for every module that LoRA can be on, whatever the adapters use of it.
        """
        widths = self.layers * sum(sum(sizes) for sizes in self.in_layer().values())
        if self.embeddings:
            widths += sum(sum(sizes) for sizes in self.outside().values())
        return 2 * rank * widths


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """A served base model."""

    id: str  # public id
    root: str | None = None  # the engine's --model string: what adapter configs must name for its resolver
    shape: Shape | None = None
    config_sha256: str | None = None  # of its config.json, where that can be read


def described(public_id: str, root: str | None) -> BaseInfo:
    """BaseInfo with what the config.json says where `root` is a folder on this machine that has one."""
    if root is None or not os.path.isabs(root):
        return BaseInfo(public_id, root)
    try:
        with (Path(root) / "config.json").open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return BaseInfo(public_id, root)
    return BaseInfo(public_id, root, _shape(text), hashlib.sha256(text).hexdigest())


def _shape(text: bytes) -> Shape | None:
    try:
        return _sizes(json.loads(text))
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError, RecursionError):
        return None  # no JSON, no table, another family, or sizes that are none


def _sizes(config: dict[str, Any]) -> Shape:
    family = config["model_type"]
    embeddings = _DENSE[family]
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    head = int(config.get("head_dim") or hidden // heads)
    return Shape(
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        query=heads * head,
        key_value=int(config.get("num_key_value_heads") or heads) * head,
        vocabulary=int(config["vocab_size"]),
        family=family,
        embeddings=embeddings,
    )
