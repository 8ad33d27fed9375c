"""TCP ports of this machine: is one free, and give me a free one."""

from __future__ import annotations

import errno
import socket

from gateway.local.errors import CannotStart, PortTaken


def need_free(host: str, port: int, flag: str) -> None:
    """PortTaken naming `flag` when `host:port` cannot be listened on now; port 0 always passes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is not taken
        try:
            probe.bind((host, port))
            probe.listen(1)
        except (OSError, OverflowError) as exc:
            number = exc.errno if isinstance(exc, OSError) else None
            if number == errno.EADDRINUSE:
                raise PortTaken(
                    f"Port {port} on {host} is taken by another program. Stop it, or choose another port with {flag}."
                ) from None
            if number == errno.EACCES:
                raise PortTaken(f"This user may not open port {port}. Choose one above 1023 with {flag}.") from None
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            raise CannotStart(
                f"Cannot listen on {host} port {port}: {reason}. "
                f"Choose another place with {flag.replace('port', 'host')} or {flag}."
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now. The system does not hand the same one out again soon."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
