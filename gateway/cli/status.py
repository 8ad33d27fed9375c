"""`loragate status`: what the running gateway says about itself."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import output
from gateway.cli.session import Session, session


@click.command(epilog="Example: loragate status --json")
@session
def status(gateway: Session) -> None:
    """Engines, adapters and keys of the running gateway."""
    gateway.show(gateway.call("GET", "/admin/v1/status"), _shown)


def _shown(document: dict[str, Any]) -> None:
    """Whatever the gateway reports: plain values first, then a table for each list."""
    tables = {name: value for name, value in document.items() if _is_table(value)}
    output.pairs(item for name, value in document.items() if name not in tables for item in _flat(name, value))
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        click.echo(f"\n{name}")
        output.table([c.upper() for c in columns], [[_cell(c, row.get(c)) for c in columns] for row in rows])


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _flat(name: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in _flat(f"{name}.{key}", inner)]
    return [(name, _cell(name, value))]


def _cell(name: str, value: object) -> object:
    return output.moment(value) if name.endswith("_at") or name == "since" else value
