"""Adapters that are made from the demo's: the same bytes, the opposite weights, weights that differ by one bit."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

from training.demo import DEMO

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def copied(name: str, target: Path) -> Path:
    """The demo's adapter `name` as it is."""
    shutil.copytree(DEMO / "adapters" / name, target)
    return target


def opposite(name: str, target: Path) -> Path:
    """Every lora_B negated (bfloat16's sign bit): moves the base the other way, so it answers something else."""
    copied(name, target)
    raw = bytearray((target / WEIGHTS).read_bytes())
    head = 8 + struct.unpack("<Q", raw[:8])[0]
    for tensor, about in json.loads(raw[8:head]).items():
        if tensor.endswith("lora_B.weight"):
            assert about["dtype"] == "BF16"
            first, last = (head + at for at in about["data_offsets"])
            raw[first + 1 : last : 2] = bytes(byte ^ 0x80 for byte in raw[first + 1 : last : 2])
    (target / WEIGHTS).write_bytes(raw)
    return target


def nudged(name: str, target: Path, at: int) -> Path:
    """The last bit of the number `at` from the end flipped: another version that says the same."""
    copied(name, target)
    raw = bytearray((target / WEIGHTS).read_bytes())
    raw[-2 - 2 * at] ^= 1
    (target / WEIGHTS).write_bytes(raw)
    return target


def wrong_rank(name: str, target: Path) -> Path:
    """A config that says another rank than the tensors have: vLLM takes it and answers nonsense."""
    copied(name, target)
    config = json.loads((target / CONFIG).read_text())
    (target / CONFIG).write_text(json.dumps(config | {"r": 4}))
    return target
