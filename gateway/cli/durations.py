"""Times as people type them on a command line: 30d, 12h, 2026-12-31."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)


class Span(click.ParamType[int]):
    """`90s`, `15m`, `12h`, `30d`, `4w` → seconds."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SPAN.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no span of time. Write a number and s, m, h, d or w, such as 12h.", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


class Until(click.ParamType[int]):
    """A span from now, or a UTC date or time → unix seconds."""

    name = "span|date"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SPAN.fullmatch(str(value))
        if match is not None:
            return int(time.time()) + int(match[1]) * _UNITS[match[2]]
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time. Write 30d, 12h, 2026-12-31 or 2026-12-31T18:00:00Z.", param, ctx)
        return int((found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp())


class Day(click.ParamType[str]):
    """A day as the calendar writes it."""

    name = "yyyy-mm-dd"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return date.fromisoformat(str(value)).isoformat()
        except ValueError:
            self.fail(f"{value!r} is no day. Write it as 2026-12-31.", param, ctx)
