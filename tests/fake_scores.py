"""What the fake engine says of prompts: token ids and their log-probabilities. A token is a word here, too.

Conversations are rendered as `<role> text` per message, and `<assistant>` where an answer is to begin.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = -2.0  # log-probability of a token where a test says nothing else


def token_id(word: str) -> int:
    return zlib.crc32(word.encode()) >> 1


def ids(text: str) -> list[int]:
    return [token_id(word) for word in text.split()]


def rendered(messages: Sequence[Mapping[str, Any]], texts: Sequence[str], body: Mapping[str, Any]) -> str:
    """texts: of the messages, in their order."""
    parts = [f"<{message.get('role')}> {text}" for message, text in zip(messages, texts, strict=True)]
    return " ".join(parts if body.get("continue_final_message") else [*parts, "<assistant>"])


def prompt_logprobs(tokens: Sequence[int], each: float) -> list[Any]:
    """As vLLM says them: nothing for the first token, then the token itself, under its id as a string."""
    return [None] + [{str(token): {"logprob": each, "rank": 1, "decoded_token": "w"}} for token in tokens[1:]]
