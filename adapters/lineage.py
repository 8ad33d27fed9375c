"""The two things that this room reads in a version's lineage, the JSON that says how it was made.

Whoever trained wrote it: what is not there, or is something else than it should be, says nothing.
"""

from __future__ import annotations

import json
from typing import Any


def utterances(lineage: str | None) -> str | None:
    """What the trainer heard the version say, as JSON, under `proof`."""
    found = _field(lineage, "proof")
    return json.dumps(found) if found is not None else None


def thinking(lineage: str | None) -> bool | None:
    """Whether it was trained with a thinking template that thinks, under `chat_template_kwargs`."""
    kwargs = _field(lineage, "chat_template_kwargs")
    found = kwargs.get("enable_thinking") if isinstance(kwargs, dict) else None
    return found if isinstance(found, bool) else None


def _field(lineage: str | None, name: str) -> Any:
    try:
        found = json.loads(lineage or "{}")
    except ValueError:
        return None
    return found.get(name) if isinstance(found, dict) else None
