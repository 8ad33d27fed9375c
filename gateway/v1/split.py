"""Which of two versions answers a caller while a canary runs: always the same one, in every process.

Owns the hash and what is noted of a request that took part. Must not know what the counts decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gateway.v1.snapshot import Target

MAX_CALLER = 512  # characters of a caller's own id that count: a longer one costs no more


@dataclass(slots=True)
class Part:
    """One request's part in a canary."""

    target: Target  # what answers it
    canary: str  # the version that is tried
    chosen: bool  # it answers with the canary
    group: int  # of callers, 0 to 255: what one caller does must not pass for what all do
    waited: bool = False  # for its weights to come into a slot: its time says nothing of them
    first_s: float = 0.0  # a stream's time to its first token
    finish: str = ""  # why the answer ended
    error: str = ""  # code of the error that the caller got


def split(target: Target, canary: Target, key_id: str, body: dict[str, Any]) -> Part:
    """The arm of this caller. Growing the share only ever moves callers from the live version to the canary."""
    version = canary.version or ""
    text = "\0".join((target.name, version, key_id, caller(body)))
    digest = blake2b(text.encode(), digest_size=8).digest()
    chosen = int.from_bytes(digest[:6], "big") < target.canary_percent / 100 * 2**48
    return Part(canary if chosen else target, version, chosen, digest[7])


def caller(body: dict[str, Any]) -> str:
    """Whom the caller speaks for, as OpenAI's SDK (two fields, the newer first) or Anthropic's says it; "" for nobody.

    These are annotations that no engine sees: taken from the body as it came.
    """
    metadata = body.get("metadata")
    said = (
        body.get("safety_identifier"),
        body.get("user"),
        metadata.get("user_id") if type(metadata) is dict else None,
    )
    for who in said:
        if type(who) is str and who:
            return who[:MAX_CALLER]
    return ""
