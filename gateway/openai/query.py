"""Query parameters, read one by one with a sentence for what is wrong. Must not know routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.errors import InvalidRequest

MAX_TEXT = 128  # characters


def text(query: Mapping[str, str], name: str) -> str | None:
    """A short text; None where it is not given."""
    given = query.get(name)
    if given is not None and len(given) > MAX_TEXT:
        raise InvalidRequest(f"`{name}` is longer than {MAX_TEXT} characters.", param=name)
    return given or None


def whole(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number."""
    given = query.get(name)
    if given is None or given == "":
        return default
    if not given.isascii() or not given.isdigit() or not low <= int(given[:10]) <= high or len(given) > 10:
        raise InvalidRequest(f"`{name}` must be a whole number from {low} to {high}.", param=name)
    return int(given)


def choice(query: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """One of `choices`, the first where it is not given."""
    given = query.get(name, choices[0])
    if given not in choices:
        raise InvalidRequest(f"`{name}` must be one of {', '.join(choices)}.", param=name)
    return given
