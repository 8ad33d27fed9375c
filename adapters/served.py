"""The base model that adapters are checked against: what its engine says, and its config.json where we can read it.

Must not know adapters. Missing knowledge is None, never a guess.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 1024 * 1024
# Architectures whose linear layers have the plain names and shapes below; others are not checked by shape.
_DENSE = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"})


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a dense decoder, from its config.json."""

    hidden: int
    intermediate: int
    layers: int
    query: int  # heads x head size
    key_value: int  # key-value heads x head size
    vocabulary: int

    def of(self, module: str) -> tuple[int, int] | None:
        """(inputs, outputs) of the module with this last name; None where the model has no such module."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            "embed_tokens": (self.vocabulary, self.hidden),
            "lm_head": (self.hidden, self.vocabulary),
        }.get(module)


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """A served base model."""

    id: str  # public id
    root: str | None = None  # the engine's --model string: what adapter configs must name for its resolver
    shape: Shape | None = None


def described(public_id: str, root: str | None) -> BaseInfo:
    """BaseInfo with the shape filled in where `root` is a folder on this machine with a config.json we understand."""
    return BaseInfo(public_id, root, _shape(Path(root)) if root is not None and os.path.isabs(root) else None)


def _shape(folder: Path) -> Shape | None:
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or config.get("model_type") not in _DENSE:
        return None
    try:
        return _sizes(config)
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _sizes(config: dict[str, Any]) -> Shape:
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
    )
