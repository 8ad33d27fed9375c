"""The gateway's own leaves of the error tree (root: adapters/errors.py). Rendering is gateway/v1/wire.py's.

ServiceError
├── InvalidRequest ── InvalidJson, UnsupportedParameter, RemoteMediaDisabled, UnsupportedEndpoint,
│                     ContextLengthExceeded, ModelInUse, ModelNotAvailable, JobStateRefused
├── Unauthenticated 401, Forbidden 403, MethodNotAllowed 405
├── NotFound 404 ── ModelNotFound, UnknownRoute, FineTuneNotFound
├── RequestTimeout 408, RequestTooLarge 413, UnsupportedMedia 415, HeadersTooLarge 431
├── RateLimited 429 ── QuotaExceeded 429 insufficient_quota
├── UpstreamError 502 ── UpstreamTimeout 504
└── Unavailable ── Overloaded 503, ModelLoading 503, ShuttingDown 503
"""

from __future__ import annotations

from adapters.errors import InvalidRequest, NotFound, ServiceError, Unavailable


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class RemoteMediaDisabled(InvalidRequest):
    """A picture or sound that would have to be fetched: neither the gateway nor an engine fetches anything."""

    code = "remote_media_disabled"


class UnsupportedEndpoint(InvalidRequest):
    """The engine does not serve this route for this model (embeddings on a generator, for one)."""

    code = "unsupported_endpoint"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelInUse(InvalidRequest):
    """400 where the control plane says 409: official SDKs send a 409 again."""

    code = "model_in_use"


class ModelNotAvailable(InvalidRequest):
    """Not what training can start from."""

    code = "model_not_available"


class JobStateRefused(InvalidRequest):
    """400 where the control plane says 409: official SDKs send a 409 again."""

    code = "invalid_job_state"


class Unauthenticated(ServiceError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(ServiceError):
    status, type, code = 403, "invalid_request_error", "insufficient_scope"


class ModelNotFound(NotFound):
    code = "model_not_found"


class FineTuneNotFound(NotFound):
    code = "fine_tune_not_found"


class UnknownRoute(NotFound):
    code = "unknown_url"


class MethodNotAllowed(ServiceError):
    """`allow`: the methods that are answered, as the header of that name must say (RFC 9110, 15.5.6)."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ServiceError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class RequestTooLarge(ServiceError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMedia(ServiceError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class HeadersTooLarge(ServiceError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class RateLimited(ServiceError):
    status, type, code = 429, "requests", "rate_limit_exceeded"


class QuotaExceeded(RateLimited):
    """A budget that no short wait refills, or one request larger than the whole limit."""

    code = "insufficient_quota"


class UpstreamError(ServiceError):
    """The engine failed before the first byte was shown. `code` says how; its own text is never passed on."""

    status, type, code = 502, "server_error", "upstream_error"

    def __init__(self, message: str, *, code: str, retryable: bool | None = None) -> None:
        super().__init__(message, retryable=retryable)
        self.code = code  # type: ignore[misc]  # the class default narrowed per instance: upstream_unreachable, …


class UpstreamTimeout(ServiceError):
    status, type, code = 504, "server_error", "upstream_timeout"


class Overloaded(Unavailable):
    code = "overloaded"


class UpstreamUnavailable(Overloaded):
    """No replica is ready at all."""

    code = "no_engine_ready"


class ModelLoading(Unavailable):
    code = "model_loading"


class ShuttingDown(Unavailable):
    code = "shutting_down"
