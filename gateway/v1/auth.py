"""Who asks: the bearer token (or x-api-key, which means the same) → Key, from the snapshot alone.

Every failure is the same 401 with the same work done. Must not know where keys are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import Forbidden, Unauthenticated
from gateway.keys import verify
from gateway.v1.snapshot import Key


def authenticate(headers: Mapping[bytes, bytes], keys: Mapping[str, Key], pepper: bytes, wall: float) -> Key:
    """The key that the request carries, with the right to infer; Unauthenticated or Forbidden.

    headers: names lower-cased. wall: unix seconds.
    """
    value = headers.get(b"authorization")
    if value is None:
        token = headers.get(b"x-api-key", b"")
    else:
        token = value[7:].strip() if value[:7].lower() == b"bearer " else b""
    key = verify(token, keys, pepper, wall)
    if key is None:
        raise Unauthenticated(
            "Incorrect API key provided. Send `Authorization: Bearer lg-…` with a key that is valid; "
            "an operator makes one with `loragate keys create`.",
            retryable=False,
        )
    if "inference" not in key.scopes:
        raise Forbidden("This key may not run inference: it lacks the scope `inference`.", retryable=False)
    return key
