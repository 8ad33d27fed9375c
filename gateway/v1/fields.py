"""The check of a request body against its route's table: one pass over the keys, unknown ones refused.

Messages name the field and the rule and never repeat a value: a prompt must not come back in an error.
What each field may be stands in fields_*.py; this file must not know any route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from adapters.errors import InvalidRequest
from gateway.errors import UnsupportedParameter
from gateway.settings import RequestCaps
from gateway.v1.fields_rules import DROP, Refused, Rule, field_name

MAX_ANSWERS = 256  # n × prompts: engine sequences that one request may start


@dataclass(frozen=True, slots=True)
class Table:
    """The allow-list of one route."""

    fields: Mapping[str, Rule]
    required: tuple[str, ...]
    answer_tokens: tuple[str, ...] = ()  # fields that bound the length of an answer
    prompts: str | None = None  # a field whose list asks for one answer per item


class Checked(NamedTuple):
    """A request that may go to an engine, and what the gateway itself must know of it.

    A tuple, since a frozen dataclass of seven fields takes 1.3 µs to build.
    """

    model: str
    stream: bool
    wants_usage: bool  # stream_options.include_usage: the caller's own wish
    wants_continuous_usage: bool
    n: int  # answers that the engine will write: n × prompts
    max_tokens: int | None  # of each answer; None where the caller sets no bound
    body: dict[str, Any]  # without annotations, nulls and stream_options


def check(table: Table, body: dict[str, Any], caps: RequestCaps) -> Checked:
    """`body` against `table`; UnsupportedParameter or InvalidRequest, both with `param`.

    Objects inside `body` are cleaned in place: the caller gives it away.
    """
    fields = table.fields
    clean: dict[str, Any] = {}
    name = ""
    try:
        for name, value in body.items():
            rule = fields.get(name)
            if rule is None:
                raise _unknown(name)
            if value is not None:
                value = rule(value, caps)
                if value is not DROP:
                    clean[name] = value
    except Refused as no:
        raise no.under(name).public() from None
    for name in table.required:
        if name not in clean:
            raise InvalidRequest(f"`{name}` is required.", param=name)
    stream = clean.get("stream") is True
    options = clean.pop("stream_options", None)
    if options is not None and not stream:
        raise InvalidRequest("`stream_options` is only allowed with `stream: true`.", param="stream_options")
    wants_usage = options is not None and options.get("include_usage") is True
    continuous = wants_usage and options.get("continuous_usage_stats") is True
    n = clean.get("n", 1) if table.prompts is None else _answers(table.prompts, clean)
    max_tokens: int | None = None
    for name in table.answer_tokens:  # where a caller gives both, the larger is what may be used
        bound = clean.get(name)
        if bound is not None and (max_tokens is None or bound > max_tokens):
            max_tokens = bound
    return Checked(clean["model"], stream, wants_usage, continuous, n, max_tokens, clean)


def _unknown(name: str) -> UnsupportedParameter:
    shown = field_name(name)
    return UnsupportedParameter(
        f"`{shown}` is not supported on this endpoint. docs/fields.md lists the fields that are.", param=shown
    )


def _answers(field: str, clean: dict[str, Any]) -> int:
    """n times the prompts, which stand in `field`; InvalidRequest for more than an engine should be given."""
    answers: int = clean.get("n", 1)
    prompts = clean[field]
    if type(prompts) is list and type(prompts[0]) is not int:
        answers *= len(prompts)
        if answers > MAX_ANSWERS:
            raise InvalidRequest(f"`n` times the number of prompts must not be more than {MAX_ANSWERS}.", param=field)
    return answers
