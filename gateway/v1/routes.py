"""The public port's hot routes: one row per route in dialect.py, dispatched by exact path before any framework.

Must not know what a request costs or means; proxy.py does.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.errors import ServiceError
from gateway.v1 import wire
from gateway.v1.dialect import BY_PATH, Dialect
from gateway.v1.exchange import STATUS, Client, Exchange
from gateway.v1.proxy import Proxy


class Routes:
    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._rows: dict[bytes, Dialect] = {path.encode(): dialect for path, dialect in BY_PATH.items()}

    def handler(
        self, client: Client, method: bytes, path: bytes, headers: Mapping[bytes, bytes], body: bytes, now: float
    ) -> Exchange | None:
        """The exchange that will answer it; None: not a hot route, the ASGI app's. now: when it was whole."""
        row = self._rows.get(path)
        if row is None or method != b"POST":
            return None
        return Exchange(self._proxy, client, row, headers, body, now)

    def stranger(self, headers: Mapping[bytes, bytes]) -> ServiceError | None:
        """Why whoever sends these headers may not send a large body: the 401 that it would get after it."""
        try:
            self._proxy.auth.authenticate(headers, self._proxy.snapshot.keys, self._proxy.wall())
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
