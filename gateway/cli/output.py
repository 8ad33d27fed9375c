"""Answers for people: tables, times, counts. Text from elsewhere is never markup and never moves the cursor."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click

FOLDED = 16  # cells that a last column needs to be read at all, when it goes over several lines


def document(value: object) -> None:
    """The one document of --json; in ASCII where stdout cannot hold all of it."""
    shown = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        shown.encode(_encoding())
    except UnicodeEncodeError:  # no UTF-8 there, or a file name that is no text
        shown = json.dumps(value, indent=2)
    click.echo(shown)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None) -> None:
    """Aligned columns on stdout, never cut: an id that misses its end, or goes on a line below, is of no use.

    Where a terminal (or `width`) is too narrow for that, the last column is folded, or each row is a block of lines.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    console.width = width or (console.width if console.is_terminal else 1000)  # a pipe has no width: one line a row
    cells = [[text(value) for value in row] for row in rows]
    needed = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    if sum(needed[:-1]) + 2 * len(needed) + min(needed[-1], FOLDED) > console.width:
        for row in cells:
            click.echo()
            pairs(zip(map(str.lower, columns), row, strict=True))
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
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
