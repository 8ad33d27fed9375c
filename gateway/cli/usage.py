"""`loragate usage`: requests and tokens per key, model and day."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import output
from gateway.cli.durations import Day
from gateway.cli.session import Session, session


@click.command(epilog="Example: loragate usage --since 2026-11-01 --by key --by model")
@click.option("--since", type=Day(), help="First UTC day.")
@click.option("--until", type=Day(), help="Last UTC day, included.")
@click.option("--key", help="Only this key's id.")
@click.option("--model", help="Only this model.")
@click.option("--by", "groups", multiple=True, type=click.Choice(["key", "model", "day", "none"]), help="Repeatable.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Rows already seen.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@session
def usage(
    gateway: Session,
    since: str | None,
    until: str | None,
    key: str | None,
    model: str | None,
    groups: tuple[str, ...],
    after: int,
    limit: int,
) -> None:
    """What was used, the last second included. Default: one row per key, model and day."""
    query = {
        "since": since,
        "until": until,
        "key": key,
        "model": model,
        "group_by": ",".join(groups) or None,
        "after": after or None,
        "limit": limit,
    }

    def for_people(page: dict[str, Any]) -> None:
        rows = page["data"]
        if rows:
            columns = ("DAY", "KEY", "MODEL", "REQUESTS", "PROMPT", "COMPLETION", "TOTAL")
            names = ("day", "key", "model", "requests", "prompt_tokens", "completion_tokens", "total_tokens")
            output.table(columns, [[row[name] for name in names] for row in rows])
        output.more(rows, page["has_more"], after + len(rows))

    gateway.show(gateway.call("GET", "/admin/v1/usage", query=query), for_people)
