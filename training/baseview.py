"""The base as a run loads it: links to the base's files beside a config.json that names the plan's precision.

LLaMA-Factory 0.9.5 loads a base in the precision of its config.json, whatever its settings say. A base stored in
bfloat16 was multiplied in bfloat16 also by a processor without such an instruction: 2.4 s a step of the demo's base
where 32 bits take 0.3.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORIGIN = ".origin"  # a link to the base's own folder
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def lay_out(base: Path, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Where a run with these settings loads `base` from: `folder`, made anew, or `base` where that is as wanted."""
    shutil.rmtree(folder, ignore_errors=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    dtype = next((name for key, name in _DTYPES.items() if settings.get(key)), "float32")
    if "quantization_config" in config or "quantization_bit" in settings:
        return base  # what is not quantised there has its precision for a reason
    wanted = _in(config, dtype)
    if not {"dtype", "torch_dtype"} & set(config):
        wanted["dtype"] = dtype  # else that of the first weight
    if wanted == config:
        return base
    folder.mkdir(parents=True)
    for file in base.absolute().iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (folder / ORIGIN).symlink_to(base.absolute())
    (folder / "config.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    return folder


def origin(folder: Path) -> Path:
    """The base itself, of a folder that `lay_out` returned."""
    link = folder / ORIGIN
    return link.readlink() if link.is_symlink() else folder


def _in(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The same with another precision, also where it is said of a part; `torch_dtype` is what it was called before."""
    return {
        key: dtype if key in ("dtype", "torch_dtype") else _in(value, dtype) if isinstance(value, dict) else value
        for key, value in config.items()
    }
