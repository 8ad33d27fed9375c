"""Answers for people: tables, times, counts. Text from elsewhere is never markup and never moves the cursor."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click


def document(value: object) -> None:
    """The one document of --json; in ASCII where stdout cannot hold all of it."""
    shown = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        shown.encode(_encoding())
    except UnicodeEncodeError:  # no UTF-8 there, or a file name that is no text
        shown = json.dumps(value, indent=2)
    click.echo(shown)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns on stdout, never cut: an id that misses its end is of no use."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(text(value)) for value in row))
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width: one line a row
    console.print(shown)


def pairs(items: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines."""
    found = list(items)
    width = max((len(name) for name, _ in found), default=0)
    for name, value in found:
        click.echo(f"{name:<{width}}  {text(value)}")


def more(items: Sequence[object], has_more: bool, after: object, option: str = "--after") -> None:
    """How to see the next page, on stderr."""
    if not items:
        click.echo("Nothing yet.", err=True)
    elif has_more:
        click.echo(f"There is more: add {option} {text(after)}", err=True)


def text(value: object) -> str:
    """A cell: `-` for nothing, no control characters, and nothing that stdout has no bytes for."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value) or "-"
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return shown.encode(_encoding(), "replace").decode(_encoding())


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"  # None: a closed stdout


def moment(seconds: object) -> str:
    """Unix seconds as UTC for people."""
    if not isinstance(seconds, int | float):
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def size(amount: object) -> str:
    """Bytes for people."""
    if not isinstance(amount, int | float):
        return "-"
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
