"""httpx as this room uses it: without its command line, and with no certificates where none are needed.

Must not know whom it calls.
"""

from __future__ import annotations

import ssl
import sys

# httpx imports its own command line if it can, which brings rich and pygments: 3.3 MB and 25 ms for nothing here.
# A None in sys.modules makes that one import fail, and httpx takes it for its extra `cli` not being installed.
_COMMAND_LINE = "httpx._main"
if "httpx" not in sys.modules:
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]
import httpx  # noqa: E402

if sys.modules.get(_COMMAND_LINE, httpx) is None:
    del sys.modules[_COMMAND_LINE]

__all__ = ["httpx", "open_http"]

KEEPALIVE_S = 3.0  # below uvicorn's 5: a question that meets its closing would make an engine look dead (seen)


def open_http(trust: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """The control plane's HTTP client: no proxies from the environment, no redirects. The caller closes it.

    trust: for https. None trusts nobody, and saves reading the certificates of the world (2.6 MB, 30 ms).
    """
    return httpx.AsyncClient(
        verify=trust if trust is not None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        trust_env=False,
        follow_redirects=False,
        # No bound: a few per engine, and engines that are slow must not make others look dead.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEPALIVE_S),
    )
