"""Who asks: the bearer token → Key, from the snapshot alone. x-api-key means the same where no Authorization is sent.

Every failure is the same 401 with the same work done. Must not know where keys are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import Forbidden, Unauthenticated
from gateway.tokens import verify
from gateway.v1.snapshot import Key

MAX_REMEMBERED = 4096  # tokens, about 0.5 MB
SCOPE = "inference"


class Authenticator:
    """Checks tokens, and remembers those that were good for as long as the snapshot's keys are the same object.

    By the whole token, never a part of it; a key that may end by itself (expiry, rotation's grace) is checked
    anew every time. Saves 2 µs a request.
    """

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._good: dict[bytes, Key] = {}
        self._keys: Mapping[str, Key] | None = None

    def authenticate(self, headers: Mapping[bytes, bytes], keys: Mapping[str, Key], wall: float) -> Key:
        """The key that the request carries, with the right to infer; Unauthenticated or Forbidden.

        headers: names lower-cased. wall: unix seconds.
        """
        token = _token(headers)
        if keys is not self._keys:
            self._keys, self._good = keys, {}
        key = self._good.get(token)
        if key is not None:
            return key
        key = self.identify(headers, keys, wall)
        if SCOPE not in key.scopes:
            raise Forbidden("This key may not run inference: it lacks the scope `inference`.", retryable=False)
        if key.expires_at is None and len(key.credentials) == 1 and len(self._good) < MAX_REMEMBERED:
            self._good[token] = key
        return key

    def identify(self, headers: Mapping[bytes, bytes], keys: Mapping[str, Key], wall: float) -> Key:
        """The key that the request carries, whatever it may do; Unauthenticated."""
        key = verify(_token(headers), keys, self._pepper, wall)
        if key is None:
            raise Unauthenticated(
                "Incorrect API key provided. Send `Authorization: Bearer lg-…` with a key that is valid; "
                "an operator makes one with `loragate keys create`.",
                retryable=False,
            )
        return key


def _token(headers: Mapping[bytes, bytes]) -> bytes:
    value = headers.get(b"authorization")
    if value is None:
        return headers.get(b"x-api-key", b"")
    return value[7:].strip() if value[:7].lower() == b"bearer " else b""
