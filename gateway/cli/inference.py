"""This gateway's own `/v1`, for a command that asks its models: where it is, and a key for as long as it is needed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.errors import InvalidRequest
from gateway.cli.client import find_public, segment
from gateway.cli.session import Session

PUBLIC_PORT = 8000
DAY_S = 86_400
HERE = ("127.0.0.1", "localhost", "::1")


def public_url(gateway: Session) -> str:
    """With /v1: where this machine's gateway says that it is, else port 8000 beside the admin API."""
    host = gateway.host or "127.0.0.1"
    said = find_public(os.environ, gateway.data_dir)
    if said is not None and host in HERE:
        return f"{said.rstrip('/').removesuffix('/v1')}/v1"
    return f"http://{f'[{host}]' if ':' in host else host}:{PUBLIC_PORT}/v1"


@contextmanager
def inference_key(gateway: Session, name: str, model: str) -> Iterator[str]:
    """The key in LORAGATE_API_KEY, else one that may ask `model`, gone again at the end. name: of that key."""
    given = os.environ.get("LORAGATE_API_KEY")
    if given:
        yield plain_key(given, "LORAGATE_API_KEY")
        return
    body = {"name": name, "models": [model.partition("@")[0]], "expires_at": int(time.time()) + DAY_S}
    made = gateway.call("POST", "/admin/v1/keys", body=body)
    try:
        yield made["key"]
    finally:
        gateway.call("DELETE", f"/admin/v1/keys/{segment(made['id'])}")


def plain_key(key: str, source: str) -> str:
    """A key as a header takes it; InvalidRequest."""
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise InvalidRequest(f"{source} has odd characters in it. Copy the key again.")
    return key
