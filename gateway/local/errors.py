"""Why `loragate up` cannot go on: leaves of the error tree (root: adapters/errors.py).

ServiceError ── CannotStart 503 ── PortTaken, AlreadyRunning, PlatformUnsupported, PackagesMissing, ModelInvalid,
                                   EngineRefused
"""

from __future__ import annotations

from adapters.errors import ServiceError


class CannotStart(ServiceError):
    """Something on this machine is in the way. The message names it and what to do."""

    status, type, code = 503, "server_error", "cannot_start"


class PortTaken(CannotStart):
    code = "port_taken"


class AlreadyRunning(CannotStart):
    code = "already_running"


class PlatformUnsupported(CannotStart):
    """No wheel exists for this Python, processor, system or C library."""

    code = "platform_unsupported"


class PackagesMissing(CannotStart):
    """The configured package indexes did not give what the pins name."""

    code = "packages_missing"


class ModelInvalid(CannotStart):
    code = "model_invalid"


class EngineRefused(CannotStart):
    """vLLM ended before it ever answered; the message carries its own last error line."""

    code = "engine_refused"
