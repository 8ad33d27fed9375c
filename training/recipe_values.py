"""The values that a recipe's keys take, each with the words for what would be right; and its YAML, read strictly.

Must not know which keys there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import yaml

from training.errors import RecipeInvalid

Number = int | float | str  # the string is "auto"
MAX_RECIPE_CHARACTERS = 1024 * 1024
MAX_TEXT = 64 * 1024


def number(
    low: float, high: float, *, whole: bool = False, above: bool = False, none: bool = False, what: str | None = None
) -> Callable[[Any], Any]:
    """A number from `low` (with `above`: more than it) to `high`. `1e-4` counts, which YAML takes for text."""
    bound = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    words = what or f"a {'whole ' if whole else ''}number {bound}{', or null' if none else ''}"

    def check(given: Any) -> Any:
        if given is None and none:
            return None
        try:
            found = math.nan if isinstance(given, bool) else float(given)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not low <= found <= high or (above and found == low) or (whole and found != int(found)):
            raise ValueError(words)
        return int(found) if whole else found

    return check


def auto_number(low: float, high: float, *, whole: bool = False, above: bool = False) -> Callable[[Any], Any]:
    """The same, or `auto`."""
    bound = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    plain = number(low, high, whole=whole, above=above, what=f"auto, or a {'whole ' if whole else ''}number {bound}")
    return lambda given: "auto" if given == "auto" else plain(given)


def one_of(choices: tuple[Hashable, ...]) -> Callable[[Any], Any]:
    """One of a few values."""
    words = "one of " + ", ".join("null" if each is None else str(each).lower() for each in choices)

    def check(given: Any) -> Any:
        for each in choices:
            if given == each and type(given) is type(each):
                return each
        raise ValueError(words)

    return check


def text(what: str, *, none: bool = False) -> Callable[[Any], Any]:
    """Text that is not empty."""

    def check(given: Any) -> Any:
        if given is None and none:
            return None
        if not isinstance(given, str) or not given.strip() or len(given) > MAX_TEXT:
            raise ValueError(what)
        return given

    return check


def texts(what: str, choices: tuple[str, ...] | None = None) -> Callable[[Any], Any]:
    """A list of words, or one word."""

    def check(given: Any) -> Any:
        found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else None
        if found is None or not all(isinstance(each, str) and each.strip() for each in found):
            raise ValueError(what)
        if choices is not None and not set(found) <= set(choices):
            raise ValueError(what)
        return found

    return check


class _Loader(yaml.SafeLoader):
    """Safe, and a key that stands twice is an error: plain YAML would quietly take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"line {line} has the key {str(key)[:60]} again")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def yaml_document(raw: str, where: str) -> dict[str, Any]:
    """The table that a YAML text is; RecipeInvalid with the line."""
    if len(raw) > MAX_RECIPE_CHARACTERS:
        raise RecipeInvalid(f"{where} is larger than a recipe can be (1 MB). Is it the data?")
    try:
        document = yaml.load(raw, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(exc, "problem", None) or "it nests too deeply"
        raise RecipeInvalid(f"{where} is not a recipe: {line}{problem}. Compare it with configs/recipes.") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise RecipeInvalid(f"{where} is not a recipe: it holds no settings. Compare it with configs/recipes.")
    return document
