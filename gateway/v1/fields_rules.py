"""What a request field may be: small rules from which the tables are put together.

A rule takes a value and the operator's caps and returns the value, or DROP for one that is accepted but not
passed on; it raises Refused with the rule's wording, never with the value. Must not know any field's name.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from adapters.errors import InvalidRequest
from gateway.errors import RemoteMediaDisabled, UnsupportedParameter
from gateway.settings import RequestCaps

Rule = Callable[[Any, RequestCaps], Any]

DROP: Any = object()  # "accepted, but the engine need not see it"
INT64, MAX_TOKEN_ID = 2**63, 2**31 - 1  # engines keep token ids in int32
MAX_PROMPT_IDS = 1024 * 1024  # of one prompt: beyond any model's context
MAX_SCHEMA_BYTES = 64 * 1024  # of one JSON schema: compiling a grammar from it is the engine's dearest step
MAX_MEDIA_CHARS = 6 * 1024 * 1024  # of one base64 picture or sound

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class Refused(Exception):
    """A value breaks its rule. `path` grows on the way out."""

    def __init__(self, rule: str, kind: type[InvalidRequest] = InvalidRequest, path: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.kind = kind
        self.path = path

    def under(self, step: str) -> Refused:
        """The same refusal as seen from one level further out: a field's name or `[3]`."""
        self.path = step + (self.path if not self.path or self.path[0] == "[" else "." + self.path)
        return self

    def public(self) -> InvalidRequest:
        return self.kind(f"`{self.path}` {self.rule}.", param=self.path)


def field_name(name: str) -> str:
    """A caller's own field name, as far as it may be repeated to them."""
    return name if _FIELD_NAME.fullmatch(name) else "(a field name that cannot be shown)"


def _ceiling(most: int | str, caps: RequestCaps) -> int:
    return most if isinstance(most, int) else int(getattr(caps, most))


def integer(low: int, high: int | str) -> Rule:
    """An integer (not a boolean, not 1.0); high: a number, or the name of a cap."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        most = _ceiling(high, caps)
        if type(value) is not int or not low <= value <= most:
            raise Refused(f"must be an integer from {low} to {most}")
        return value

    return rule


def number(low: float, high: float, *, above: bool = False) -> Rule:
    """A number; above: the lower bound itself is not allowed."""
    wording = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"

    def rule(value: Any, caps: RequestCaps) -> Any:
        numeric = type(value) is float or type(value) is int
        if not numeric or not low <= value <= high or (above and value == low):
            raise Refused(f"must be a number {wording}")
        return value

    return rule


def boolean(value: Any, caps: RequestCaps) -> Any:
    if value is not True and value is not False:
        raise Refused("must be true or false")
    return value


def text(most: int | None = None, least: int = 0) -> Rule:
    """A string; most: characters, None for as many as a body holds."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not str:
            raise Refused("must be a string")
        if len(value) < least or (most is not None and len(value) > most):
            raise Refused(f"must be a string of {least} to {most} characters" if most else "must not be empty")
        return value

    return rule


def one_of(*allowed: str) -> Rule:
    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not str or value not in allowed:
            raise Refused("must be one of " + ", ".join(allowed))
        return value

    return rule


def ignored(value: Any, caps: RequestCaps) -> Any:
    """An annotation: says something about the request, changes nothing of the answer."""
    return DROP


def only(*accepted: Any) -> Rule:
    """A feature that is not served: only the values that mean "without it" are accepted, and dropped."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if not any(type(value) is type(one) and value == one for one in accepted):
            raise Refused("is not supported by this gateway", UnsupportedParameter)
        return DROP

    return rule


def refused(why: str, kind: type[InvalidRequest] = UnsupportedParameter) -> Rule:
    def rule(value: Any, caps: RequestCaps) -> Any:
        raise Refused(why, kind)

    return rule


def items(each: Rule, most: int | str, least: int = 0) -> Rule:
    def rule(value: Any, caps: RequestCaps) -> Any:
        limit = _ceiling(most, caps)
        if type(value) is not list or not least <= len(value) <= limit:
            raise Refused(f"must be a list of {least} to {limit} items")
        for at, item in enumerate(value):
            try:
                each(item, caps)
            except Refused as no:
                raise no.under(f"[{at}]") from None
        return value

    return rule


def unless_empty(other: Rule) -> Rule:
    """An empty list is the same as leaving the field out: SDKs send back `tool_calls: []` of an earlier answer."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        return DROP if value == [] else other(value, caps)

    return rule


def token_ids(most: int, least: int = 0) -> Rule:
    """A list of token ids, checked without a Python step per id: prompts may have a million."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not list or not least <= len(value) <= most:
            raise Refused(f"must be a list of {least} to {most} token ids")
        if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) > MAX_TOKEN_ID):
            raise Refused("must hold token ids only, that is integers from 0 up")
        return value

    return rule


def text_or(other: Rule, string: Rule | None = None) -> Rule:
    """A string (any, or what `string` takes), or what `other` takes."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is str:
            return value if string is None else string(value, caps)
        return other(value, caps)

    return rule


def shape(fields: Mapping[str, Rule], *required: str) -> Rule:
    """An object with these fields and no others; a null is the same as leaving the field out."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not dict:
            raise Refused("must be an object")
        dropped = []
        for name, inner in value.items():
            allowed = fields.get(name)
            if allowed is None:
                raise Refused("is not supported by this gateway", UnsupportedParameter, field_name(name))
            try:
                if inner is None or allowed(inner, caps) is DROP:
                    dropped.append(name)
            except Refused as no:
                raise no.under(name) from None
        for name in dropped:
            del value[name]
        for name in required:
            if name not in value:
                raise Refused("is required", path=name)
        return value

    return rule


def variant(key: str, shapes: Mapping[str, Rule], default: str | None = None) -> Rule:
    """An object whose kind stands in its field `key`; default: its kind when the field is missing."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not dict:
            raise Refused("must be an object")
        kind = value.get(key)
        if kind is None:
            kind = default
        found = shapes.get(kind) if type(kind) is str else None
        if found is None:
            raise Refused("must be one of " + ", ".join(shapes), UnsupportedParameter, key)
        return found(value, caps)

    return rule


def prompts(most: int) -> Rule:
    """A text, a list of token ids, or up to `most` of either."""
    ids = token_ids(MAX_PROMPT_IDS, 1)
    many_texts, many_ids = items(text(), most), items(ids, most)

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is str:
            return value
        first = value[0] if type(value) is list and value else None
        if type(first) is int:
            return ids(value, caps)
        if type(first) is list:
            return many_ids(value, caps)
        if type(first) is str:
            return many_texts(value, caps)
        raise Refused("must be a string, a list of token ids, or a list of either that is not empty")

    return rule


def schema(value: Any, caps: RequestCaps) -> Any:
    """A JSON schema or any other free object, bounded in bytes; its depth is bounded by the body's."""
    if type(value) is not dict:
        raise Refused("must be an object")
    if len(orjson.dumps(value)) > MAX_SCHEMA_BYTES:
        raise Refused(f"must not be larger than {MAX_SCHEMA_BYTES} bytes")
    return value


def object_of_any(value: Any, caps: RequestCaps) -> Any:
    if type(value) is not dict:
        raise Refused("must be an object")
    return value


def base64_data(value: Any, caps: RequestCaps) -> Any:
    if type(value) is not str or not 0 < len(value) <= MAX_MEDIA_CHARS:
        raise Refused(f"must be base64 text of at most {MAX_MEDIA_CHARS} characters")
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise Refused("must be base64 text") from None
    return value


def data_url(*media_types: str) -> Rule:
    """A picture or sound inside the request; anything that would have to be fetched is refused."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not str or not value.startswith("data:"):
            raise Refused("must be a data: URL; this gateway and its engines fetch nothing", RemoteMediaDisabled)
        head = value[:64].partition(";base64,")[0]
        if head[5:] not in media_types:
            raise Refused("must be a base64 data: URL of one of the types " + ", ".join(media_types))
        base64_data(value[len(head) + 8 :], caps)
        return value

    return rule


def logit_bias(most: int) -> Rule:
    """Token id (as text, the way JSON has keys) → -100 to 100."""

    def rule(value: Any, caps: RequestCaps) -> Any:
        if type(value) is not dict or len(value) > most:
            raise Refused(f"must be an object of at most {most} entries")
        for token, bias in value.items():
            if not (token.isascii() and token.isdigit() and len(token) <= 10):
                raise Refused("must have token ids as its keys")
            if (type(bias) is not int and type(bias) is not float) or not -100 <= bias <= 100:
                raise Refused("must have numbers from -100 to 100 as its values")
        return value

    return rule
