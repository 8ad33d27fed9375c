"""Ids as OpenAI's clients know them (a prefix that says what it is, 24 letters and digits by chance), and names."""

from __future__ import annotations

from collections.abc import Callable

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 24  # 142 bits


def mint(prefix: str, random_bytes: Callable[[int], bytes]) -> str:
    """A new id such as `ftjob-…`; unique without asking anybody."""
    number = int.from_bytes(random_bytes(20), "big")
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return prefix + "".join(digits)


def checkpoint_name(name: str, step: int) -> str:
    """The public name of a checkpoint that can be asked."""
    return f"{name}:ckpt-step-{step}"
