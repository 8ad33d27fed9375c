"""Whether two answers are the same text, but for how it is encoded and spaced.

Unicode's NFKC (full-width and half-width forms are equal), white space collapsed, ends trimmed. Case and punctuation
count: in code and in amounts they are the answer.
"""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def exact(answer: str, reference: str) -> float:
    """1 or 0."""
    return float(normalised(answer) == normalised(reference))
