"""Adapters for tests of exports: the demo's own, and copies that are not what they seem."""

from __future__ import annotations

import json
import struct
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def without_effect(source: Path, target: Path) -> Path:
    """A copy whose second halves are zero: it answers as the base does."""
    target.mkdir(parents=True)
    (target / CONFIG).write_bytes((source / CONFIG).read_bytes())
    raw = bytearray((source / WEIGHTS).read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if ".lora_B." in name:
            begin, end = (8 + length + at for at in entry["data_offsets"])
            raw[begin:end] = bytes(end - begin)
    (target / WEIGHTS).write_bytes(raw)
    return target
