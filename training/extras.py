"""The libraries of the extra `train`, imported where they are used: the gateway process never loads one."""

from __future__ import annotations

import importlib
from typing import Any

from adapters.errors import ServiceError


class ExtraMissing(ServiceError):
    code = "extra_missing"


def need(module: str) -> Any:
    """The module `module`; ExtraMissing says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ExtraMissing(
            f"This needs the Python package {exc.name or module}, which is not installed here. "
            "Install the data tools: pip install 'loragate[train]'."
        ) from None
