"""A LoRA folder of a few hundred bytes that the intake accepts."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def tiny_lora(folder: Path, seed: int = 1) -> Path:
    """Write one rank-4 module into `folder`; another seed is another version."""
    folder.mkdir(parents=True)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    header, at = {}, 0
    for part, shape in (("lora_A", [4, 8]), ("lora_B", [8, 4])):
        header[f"{module}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 128]}
        at += 128
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = struct.pack("<64f", *(seed / 8 + n / 64 for n in range(64)))
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
