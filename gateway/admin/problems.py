"""What FastAPI refuses by itself → our errors: the field's path and the rule, never what was sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adapters.errors import InvalidRequest, ServiceError
from gateway.admin.schemas import IN_WORDS
from gateway.errors import InvalidJson, MethodNotAllowed, UnknownRoute, UnsupportedParameter

_ONE_OF_SEVERAL = ("constrained-", "function-")  # pydantic's names for the types that a field may have
# A field name is the caller's text too: anything that is not plainly one is not repeated.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


def from_validation(error: RequestValidationError) -> ServiceError:
    """The first problem of a body or query; the others show themselves when it is gone."""
    first = error.errors()[0]
    kind, where = str(first["type"]), first["loc"]
    if kind == "json_invalid":
        return InvalidJson("The body is not JSON.")
    field = _path(where)
    if kind == "extra_forbidden":
        return UnsupportedParameter(f"Unknown parameter{_quoted(field)}. /docs lists what is taken here.", param=field)
    if kind == "missing" and len(where) == 1:
        return InvalidRequest("This needs a JSON body. /docs shows its fields.")
    if kind == "missing":
        return InvalidRequest(f"The parameter{_quoted(field)} is required.", param=field)
    return InvalidRequest(f"Invalid value for{_quoted(field) or ' a parameter'}: {_rule(first)}.", param=field)


def from_http(error: HTTPException) -> ServiceError:
    """The framework's own refusals."""
    if error.status_code == 404:
        return UnknownRoute("This URL is not served on the admin port. /docs lists what is.")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed("This method is not answered here. /docs lists what is.", allow=allow)
    return InvalidJson("The body could not be read as JSON.")


def _path(where: Sequence[int | str]) -> str | None:
    """`limits.0.rpm` of ("body", "limits", 0, "rpm"); None where it would repeat odd text or names nothing."""
    parts = [str(part) for part in where[1:]]
    if parts and parts[-1].startswith(_ONE_OF_SEVERAL):
        parts.pop()
    return ".".join(parts) if parts and all(_PLAIN.fullmatch(p) or p.isdigit() for p in parts) else None


def _quoted(field: str | None) -> str:
    return f" `{field}`" if field else ""


def _rule(problem: dict[str, Any]) -> str:
    """Pydantic's sentence about the rule; it names types and bounds, never the input, except for what is left out."""
    if problem["type"] in ("string_unicode", "value_error"):
        return "it is not valid text" if problem["type"] == "string_unicode" else str(problem["ctx"]["error"])
    if problem["type"] == "string_pattern_mismatch":
        return IN_WORDS.get(problem["ctx"]["pattern"], "it is not written as this is written")
    message = str(problem["msg"])
    return message[0].lower() + message[1:] if message else "it is not allowed"
