"""The only OpenAI JSON: strict parsing, our own serialisation, error envelopes, model lists.

Text that an engine wrote is rendered again here, never passed on as it is. Must not know HTTP or sockets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import orjson

from adapters.errors import InvalidRequest, ServiceError
from gateway.errors import (
    ContextLengthExceeded,
    InvalidJson,
    MethodNotAllowed,
    ModelLoading,
    Overloaded,
    RequestTooLarge,
    UnsupportedEndpoint,
    UpstreamError,
)
from gateway.v1.snapshot import Target

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 120  # official SDKs do not retry at all beyond 120 s

# 10 kinds of digit made one, so that one search finds a run of 19: the shortest integer that can leave 64 bit.
# 0.4 µs for 300 bytes, where a regular expression takes 2.9 µs.
_ONE_DIGIT = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_LONG_RUN = b"0" * 19

_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


# Requests ------------------------------------------------------------------------------------------------


def parse(raw: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object in `raw`; InvalidJson for anything else.

    orjson refuses NaN, 1e999, lone surrogates, BOM and UTF-16. What it lets through and we do not: nesting
    deeper than `max_depth`, integers outside 64 bit (it turns them into floats) and a top level that is no object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise InvalidJson(f"The request body is not valid JSON: {exc.msg}.") from None
    if type(body) is not dict:
        raise InvalidJson("The request body must be a JSON object.")
    if raw.count(b"{") + raw.count(b"[") > max_depth:
        _check_depth(body, max_depth)
    if _LONG_RUN in raw.translate(_ONE_DIGIT):
        json.loads(raw, parse_int=_bounded_int)
    return body


def encode(body: Any) -> bytes:
    return orjson.dumps(body)


def _check_depth(body: dict[str, Any], max_depth: int) -> None:
    level: list[Any] = [body]
    for _ in range(max_depth):
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return
    raise InvalidJson(f"The request body is nested deeper than {max_depth} levels.")


def _bounded_int(digits: str) -> int:
    # The length comes first: int() itself refuses 4,300 digits and is quadratic below that.
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise InvalidJson("The request body holds an integer that does not fit into 64 bits.")
    return int(digits)


# Errors --------------------------------------------------------------------------------------------------


def openai_error(err: ServiceError) -> bytes:
    return encode({"error": {"message": err.message, "type": err.type, "param": err.param, "code": err.code}})


def anthropic_error(err: ServiceError) -> bytes:
    kind = _ANTHROPIC_TYPES.get(err.status, "api_error" if err.status >= 500 else "invalid_request_error")
    return encode({"type": "error", "error": {"type": kind, "message": err.message}})


def error_headers(err: ServiceError) -> list[tuple[bytes, bytes]]:
    """The headers that belong to an error: what a client may do next."""
    headers: list[tuple[bytes, bytes]] = []
    if err.retry_after_s is not None:
        seconds = min(max(err.retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
        headers.append((b"retry-after", b"%d" % seconds))
    if err.retryable is not None:
        headers.append((b"x-should-retry", b"true" if err.retryable else b"false"))
    if err.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(err, MethodNotAllowed):
        headers.append((b"allow", err.allow.encode()))
    return headers


def error_lines(err: ServiceError) -> bytes:
    """error_headers as bytes of an HTTP/1.1 head."""
    return b"".join(b"%b: %b\r\n" % header for header in error_headers(err))


# Models --------------------------------------------------------------------------------------------------


def models_body(targets: Iterable[Target], base: str | None) -> bytes:
    return encode({"object": "list", "data": [_model(target, base, target.name) for target in targets]})


def model_body(target: Target, base: str | None, asked: str) -> bytes:
    """asked: the name that was resolved, `name@<12 hex>` included: whoever retrieves an id gets that id."""
    return encode(_model(target, base, asked))


def deleted_body(asked: str) -> bytes:
    return encode({"id": asked, "object": "model", "deleted": True})


def _model(target: Target, base: str | None, name: str) -> dict[str, Any]:
    parent = base if target.name != base else None
    return {
        "id": name,
        "object": "model",
        "created": target.created,
        "owned_by": "loragate",
        "parent": parent,
        "version": target.version,  # that answers; of a name with a canary the live one
    }


# Answers -------------------------------------------------------------------------------------------------


def is_object(body: bytes) -> bool:
    try:
        return type(orjson.loads(body)) is dict
    except orjson.JSONDecodeError:
        return False


def rename_model(body: bytes, engine_model: str, public_model: str) -> bytes:
    """The answer with its `model` field renamed.

    Searched as bytes: inside a JSON string every quote has a backslash before it, so these can only be a key
    and its value.
    """
    return body.replace(model_field(engine_model), model_field(public_model), 1)


def model_field(model: str) -> bytes:
    return b'"model":"%b"' % model.encode()


# An engine's 4xx -----------------------------------------------------------------------------------------

_LIMIT = re.compile(r"(?:maximum context length (?:is |\()|max_model_len[ =])(\d{1,9})")
_WANTED = re.compile(r"(?:contains (?:at least )?|prompt length |Input length \(|max_tokens=)(\d{1,9})(?! char)")
# Harmless text: words, plain numbers, names in quotes or backticks. No path, URL, address, brace or line break.
_PLAIN = re.compile(r"(?:[A-Za-z0-9 ,.;:()\[\]<>=+%_-]|`[\w.]{1,64}`|'[\w.]{1,64}'|\"[\w.]{1,64}\")+")
_SUSPECT = re.compile(r"0x[0-9a-f]|\d+\.\d+\.\d+\.\d+|:\d|vllm|traceback|errno|localhost|\.py\b", re.IGNORECASE)
# "…, got <the caller's value>" and "… (parameter=…, value=<the caller's value>)"
_ECHO = re.compile(
    r"(?:^|[,.;:]?\s+)(?:but\s+)?got\b.*|\s*\((?:parameter|value|received)\b.*", re.IGNORECASE | re.DOTALL
)
_NO_API = re.compile(r"does not support [\w ()]{1,40} API")
_PARAM = re.compile(r"[A-Za-z_][\w.\[\]]{0,63}")
_MAX_ENGINE_TEXT = 300


def from_engine_error(status: int, body: bytes, public_model: str, engine_model: str) -> ServiceError:
    """What an engine's refusal means for the caller; its text only where it is short and harmless.

    public_model, engine_model: the names of the weights to the caller and to the engine.
    """
    text, param = _engine_text(body)
    if status in (401, 403):
        return UpstreamError("The engine refused this gateway's own key. The operator must set it right.",
                             code="upstream_refused_key", retryable=False)  # fmt: skip
    if status in (429, 503):
        return Overloaded("The engine has as many requests as it can take. Try again in a moment.", retry_after_s=2)
    if "LoRA adapter" in text:
        return UpstreamError(f"The engine could not load the model `{public_model}`. The operator sees why.",
                             code="upstream_load_failed")  # fmt: skip
    if _NO_API.search(text) or status in (404, 405, 501):
        if status == 404 and "does not exist" in text:
            return ModelLoading(f"The model `{public_model}` is being loaded. Try again shortly.", retry_after_s=2)
        return UnsupportedEndpoint(f"The engine does not serve this endpoint for the model `{public_model}`.")
    if status == 413:
        return RequestTooLarge("The request is larger than the engine accepts. Send a shorter one.")
    if status not in (400, 422):
        return UpstreamError("The engine's answer was not valid. Try again.", code="upstream_protocol_error")
    if "context length" in text or "max_model_len" in text:
        return _context_length(text)
    if "reasoning_config" in text:
        return InvalidRequest("This model's engine runs without a reasoning parser, so there is no thinking to bound: "
                              "leave `thinking_token_budget` (`thinking` in messages) out.")  # fmt: skip
    param = param.removeprefix("body.")
    return InvalidRequest(
        _harmless(text, public_model, engine_model) or "The engine refused this request as not valid for this model.",
        param=param if _PARAM.fullmatch(param) else None,
    )


def _engine_text(body: bytes) -> tuple[str, str]:
    """message and param of an engine's error body, of whatever shape; empty strings where there is none."""
    try:
        error = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        return "", ""
    text, param = error.get("message", error.get("detail")), error.get("param")
    return text if isinstance(text, str) else "", param if isinstance(param, str) else ""


def _context_length(text: str) -> ContextLengthExceeded:
    limit, wanted = _LIMIT.search(text), _WANTED.search(text)
    message = "This model's maximum context length is exceeded"
    if limit is not None:
        message = f"This model's maximum context length is {limit[1]} tokens"
        if wanted is not None:
            message += f"; this request has at least {wanted[1]}"
    return ContextLengthExceeded(f"{message}. Shorten the prompt or lower max_tokens.")


def _harmless(text: str, public_model: str, engine_model: str) -> str | None:
    text = _ECHO.sub("", text.replace(engine_model, public_model)).strip()
    if not text or len(text) > _MAX_ENGINE_TEXT or _SUSPECT.search(text) or not _PLAIN.fullmatch(text):
        return None
    return text if text.endswith(".") else text + "."
