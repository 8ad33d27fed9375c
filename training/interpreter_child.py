"""Child script, run by the training environment: which packages it has, and what decides the order of its sums.

    python -I -X utf8 interpreter_child.py

One JSON document on stdout. Without torch it says what it can.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any


def packages() -> dict[str, str]:
    """Every distribution and its version."""
    found = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = each.version
    return dict(sorted(found.items()))


def arithmetic() -> dict[str, Any]:
    """The number of threads and the instructions that torch takes here: with others, sums round differently."""
    try:
        import torch
    except ImportError:
        return {"threads": None, "instructions": None, "cuda": None, "gpus": []}
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if gpus else None,
        "gpus": gpus,
    }


if __name__ == "__main__":
    machine = {"system": platform.system(), "machine": platform.machine()}
    print(json.dumps({"python": platform.python_version(), "packages": packages(), **machine, **arithmetic()}))
