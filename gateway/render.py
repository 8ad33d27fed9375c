"""Any error → status, headers and body in OpenAI's shape, for the doors that are not the data plane.

The JSON itself is gateway/v1/wire.py's. Must not know frameworks.
"""

from __future__ import annotations

from adapters.errors import ServiceError
from gateway.v1 import wire


def render(error: ServiceError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers with lower-case names (content type and length included) and the body."""
    body = wire.openai_error(error)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return error.status, headers + wire.error_headers(error), body
