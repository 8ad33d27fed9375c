"""Bases and facts for tests of plans: the demo's real one, and folders that look like larger ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.facts import DataFacts, Facts, Gpu, Machine
from training.recipe import Recipe, parse

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
LAPTOP = Machine(cpus=2, memory_gb=8)
H100 = Machine(cpus=16, memory_gb=128, gpus=(Gpu("NVIDIA H100 80GB HBM3", 79.6),))
SMALL_GPU = Machine(cpus=8, memory_gb=32, gpus=(Gpu("NVIDIA GeForce RTX 4090", 24),))
QWEN = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
QWEN += "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"


def recipe(**sections: Any) -> Recipe:
    return parse({"name": "cs", "data": {"train": "rows.jsonl"}, **sections})


def rows(count: int = 24, tokens: int = 70, kind: str = "sft", **more: Any) -> DataFacts:
    return DataFacts(kind, {tokens: count}, **more)


def demo(machine: Machine = LAPTOP, max_lora_rank: int = 16, tokens_per_s: float | None = None) -> Facts:
    return Facts.look("demo-base", DEMO / "base", max_lora_rank, machine, tokens_per_s)


def large(folder: Path, machine: Machine, *, template: str = QWEN, **config: Any) -> Facts:
    """A base of 7.6 G parameters as files of no size: a header says what would be there."""
    sizes = {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    sizes |= {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**sizes, "max_position_embeddings": 32768, **config}))
    (folder / "chat_template.jinja").write_text(template)
    write_header(folder / "model.safetensors", {"w": [7_600_000, 1000]})
    return Facts.look("acme/Large-7B", folder, 16, machine)


def write_header(file: Path, shapes: Mapping[str, list[int]]) -> None:
    header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
