"""The root of every error this product raises on purpose, and the errors of this room.

    ServiceError                    status, type, code: all a door needs to render it
    ├── InvalidRequest              400 invalid_value: the caller must change something
    │   ├── InvalidName             400 invalid_name
    │   └── AdapterRejected         400 adapter_rejected, with a machine-readable `reason`
    ├── NotFound                    404
    ├── Conflict                    409 (control plane only: SDKs retry a 409 on the inference plane)
    ├── Unavailable                 503, may be retried
    │   ├── RegistryBusy            503 registry_busy
    │   └── Saturated               503 engine_saturated: every adapter that the engine holds is in use or pinned
    ├── StorageFull                 507 storage_full
    ├── DatabaseUnusable            500 database_unusable: corrupt, newer than this program, or not to be opened
    └── EngineError                 502 engine_error: an engine answered a load or unload with something else than yes
        └── NotProven               502 not_proven: it said yes, and does not answer with the weights

The gateway adds its own leaves in gateway/errors.py; one renderer there turns any of them into a body.
This file must not know HTTP libraries or JSON.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """An expected failure. The message is shown to a person: what happened, why, what to do next.

    retry_after_s: whole seconds (1-120) until a retry can help; None where time changes nothing.
    retryable: False makes official SDKs stop retrying (`x-should-retry: false`); None says nothing.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.retryable = retryable


class InvalidRequest(ServiceError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class InvalidName(InvalidRequest):
    code = "invalid_name"


class AdapterRejected(InvalidRequest):
    """The folder cannot be served. `reason` is one stable word for programs, the message is for people."""

    code = "adapter_rejected"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, param="source")
        self.reason = reason


class NotFound(ServiceError):
    status, type, code = 404, "invalid_request_error", "not_found"


class Conflict(ServiceError):
    status, type, code = 409, "invalid_request_error", "conflict"


class Unavailable(ServiceError):
    status, type, code = 503, "server_error", "unavailable"


class RegistryBusy(Unavailable):
    code = "registry_busy"


class Saturated(Unavailable):
    code = "engine_saturated"


class StorageFull(ServiceError):
    status, type, code = 507, "server_error", "storage_full"


class DatabaseUnusable(ServiceError):
    """The program must not start on this database; it is left untouched for a person to look at."""

    code = "database_unusable"


class EngineError(ServiceError):
    status, type, code = 502, "server_error", "engine_error"


class NotProven(EngineError):
    code = "not_proven"
