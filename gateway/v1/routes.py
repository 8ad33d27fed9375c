"""The public port's hot routes: one row per route in dialect.py, dispatched by exact path before any framework.

Must not know what a request costs or means; proxy.py does.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.errors import ServiceError
from gateway.errors import Forbidden
from gateway.v1 import wire
from gateway.v1.dialect import BY_PATH, Dialect
from gateway.v1.exchange import STATUS, Client, Exchange
from gateway.v1.proxy import Proxy

TRAINING = frozenset({"training", "admin"})  # either scope lets a key send data sets


class Routes:
    """streamed: paths of uploads, which are not for inference, and how many bytes a body there may have."""

    def __init__(self, proxy: Proxy, streamed: Mapping[bytes, int]) -> None:
        self._proxy = proxy
        self.streamed = streamed
        self._rows: dict[bytes, Dialect] = {path.encode(): dialect for path, dialect in BY_PATH.items()}

    def handler(
        self, client: Client, method: bytes, path: bytes, headers: Mapping[bytes, bytes], body: bytes, now: float
    ) -> Exchange | None:
        """The exchange that will answer it; None: not a hot route, the ASGI app's. now: when it was whole."""
        row = self._rows.get(path)
        if row is None or method != b"POST":
            return None
        return Exchange(self._proxy, client, row, headers, body, now)

    def stranger(self, path: bytes, headers: Mapping[bytes, bytes]) -> ServiceError | None:
        """Why whoever sends these headers may not send a large body: the 401 or 403 that it would get after it."""
        proxy = self._proxy
        try:
            if path in self._rows:
                proxy.auth.authenticate(headers, proxy.snapshot.keys, proxy.wall())
                return None
            key = proxy.auth.identify(headers, proxy.snapshot.keys, proxy.wall())
            if path in self.streamed and not key.scopes & TRAINING:
                return Forbidden("This key may not upload files: it lacks the scope `training`.", retryable=False)
        except ServiceError as error:
            return error
        return None

    def render(self, path: bytes, error: ServiceError) -> bytes:
        """A refusal of the connection itself, in the route's own envelope: head and body, without common headers."""
        row = self._rows.get(path)
        body = row.error_body(error) if row is not None else wire.openai_error(error)
        return b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
            STATUS[error.status], len(body), self._proxy.new_request_id(), wire.error_lines(error), body
        )  # fmt: skip
