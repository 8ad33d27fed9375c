"""What pydantic refuses of a recipe → one sentence that names the key and says what would be right."""

from __future__ import annotations

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from training.errors import RecipeInvalid


def translated(error: ValidationError, model: type[BaseModel]) -> RecipeInvalid:
    """The first problem; how many others there are is said too."""
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    others = f" {len(problems) - 1} more settings are wrong." if len(problems) > 1 else ""
    return RecipeInvalid(_sentence(key, first, model) + others, param=key or None)


def _sentence(key: str, problem: Any, model: type[BaseModel]) -> str:
    kind, where = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        known = _fields(model, where[:-1])
        near = difflib.get_close_matches(str(where[-1]), known, n=1)
        ahead = ".".join(str(part) for part in where[:-1])
        hint = f"Did you mean `{ahead + '.' if ahead else ''}{near[0]}`?" if near else f"There are {', '.join(known)}."
        return f"`{key[:120]}` is no setting of a recipe. {hint}"
    if kind == "missing":
        return f"`{key}` is missing. docs/recipes.md shows a whole recipe."
    if kind == "value_error":
        return f"`{key}` is {_shown(problem['input'])}: give {problem['ctx']['error']}."
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        names = ", ".join(_fields(model, where)) or "names and values"
        return f"`{key}` is {_shown(problem['input'])}: give a section with {names}."
    return f"`{key}` is {_shown(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}."


def _fields(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The settings of the section at `where`."""
    for part in where:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = [field.annotation, *get_args(field.annotation)]
        inner += [deep for each in inner for deep in get_args(each)]
        sections = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
        if sections:
            model = sections[0]
    return list(model.model_fields)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
