"""Who may come in at all, before a body is read: the bearer token, and how often one client may try (slowapi).

Deny by default: whatever is not in OPEN needs a live key, unknown paths too. What a key may do is decided by the
routes (gateway/admin/access.py). Must not know routes or services.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from limits import RateLimitItem, parse
from slowapi import Limiter
from starlette.requests import Request
from starlette.types import Scope

from gateway.errors import RateLimited, Unauthenticated
from gateway.keys import Key

OPEN = frozenset({"/livez", "/readyz", "/metrics"})
FAILURES = "20/minute"  # wrong keys from one address
CALLS = "600/minute"  # requests with one key
# Without a file of ours slowapi reads the `.env` of whatever directory the gateway was started in.
NO_SETTINGS = Path(__file__).with_name("slowapi.env")


class Guard:
    """authenticate: token bytes → the live key, or None; costs the same for every token."""

    def __init__(self, authenticate: Callable[[bytes], Key | None]) -> None:
        self._authenticate = authenticate
        self._limiter = Limiter(
            key_func=_client, strategy="fixed-window", storage_uri="memory://", config_filename=str(NO_SETTINGS)
        )
        self._failures = parse(FAILURES)
        self._calls = parse(CALLS)

    def admit(self, scope: Scope) -> Key | None:
        """The caller's key; None on an open path. Unauthenticated, RateLimited.

        Wrong keys are counted per address and right ones per key, so that somebody who guesses cannot lock out the
        operator behind the same address.
        """
        if scope["path"] in OPEN:
            return None
        key = self._authenticate(bearer(scope["headers"]))
        if key is not None:
            self._count(self._calls, key.id)
            return key
        self._count(self._failures, _client(Request(scope)))
        raise Unauthenticated(
            "Incorrect API key provided. Send `Authorization: Bearer …` with the key in the gateway's admin.key, "
            "or one with the scope admin.",
            retryable=False,
        )

    def _count(self, limit: RateLimitItem, who: str) -> None:
        if self._limiter.limiter.hit(limit, who):
            return
        reset = self._limiter.limiter.get_window_stats(limit, who).reset_time
        wait_s = min(120, max(1, math.ceil(reset - time.time())))  # the library keeps its windows in wall time
        raise RateLimited("Too many requests to the admin port. Wait, then try again.", retry_after_s=wait_s)


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The token of the one Authorization header; empty where there is none, several, or another scheme."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1 or values[0][:7].lower() != b"bearer ":
        return b""
    return values[0][7:].strip(b" \t")


def _client(request: Request) -> str:
    # The address of the connection: X-Forwarded-For is whatever its sender likes.
    return request.client.host if request.client is not None else "unknown"
