"""Who may use the routes for training: a key with the scope `training` sees its own, one with `admin` everything.

A key with `admin` and a list of models administers those alone, so here it sees its own, too.
"""

from __future__ import annotations

from fastapi import Request

from gateway.errors import Forbidden
from gateway.v1.proxy import Proxy
from gateway.v1.snapshot import Key

TRAINING, ADMIN = "training", "admin"


class Callers:
    """The keys of the snapshot, as these routes ask for them."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def training(self, request: Request) -> Key:
        """The caller; Unauthenticated, Forbidden."""
        proxy = self._proxy
        key = proxy.auth.identify(dict(request.scope["headers"]), proxy.snapshot.keys, proxy.wall())
        if TRAINING not in key.scopes and ADMIN not in key.scopes:
            raise Forbidden(
                "This key may not use files and fine-tuning: it lacks the scope `training`. "
                "An operator makes one with `loragate keys create --name N --scope inference --scope training`.",
                retryable=False,
            )
        return key


def sees(key: Key) -> str | None:
    """Whose files and jobs exist for this caller: its own, or everybody's (None)."""
    return None if ADMIN in key.scopes and key.models is None else key.id
