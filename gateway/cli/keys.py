"""`loragate keys …`: create, list, show, rotate, revoke."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import output
from gateway.cli.client import segment
from gateway.cli.durations import Span, Until
from gateway.cli.session import Session, session

PATH = "/admin/v1/keys"
SCOPES = ("inference", "feedback", "training", "admin")
COLUMNS = ("ID", "NAME", "SCOPES", "MODELS", "LIMITS", "EXPIRES", "CREATED", "REVOKED")
LIMITS = (("rpm", "/min"), ("tpm", " tokens/min"), ("concurrency", " at once"), ("daily_tokens", " tokens/day"))


@click.group()
def keys() -> None:
    """API keys: who may ask, for what, how much.

    Example: loragate keys create --name my-app --model customer-service --rpm 600
    """


@keys.command(epilog="Example: loragate keys create --name my-app --model customer-service --rpm 600 --expires 90d")
@click.option("--name", required=True, help="What or whom the key is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Default: inference. Repeatable.")
@click.option("--model", "models", multiple=True, help="A model the key may use; repeatable. Default: all.")
@click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute.")
@click.option("--tpm", type=click.IntRange(min=1), help="Tokens per minute.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once.")
@click.option("--daily-tokens", type=click.IntRange(min=1), help="Tokens per UTC day.")
@click.option("--expires", type=Until(), help="When it ends: 30d, 12h, 2026-12-31 (UTC).")
@session
def create(
    gateway: Session,
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    rpm: int | None,
    tpm: int | None,
    concurrency: int | None,
    daily_tokens: int | None,
    expires: int | None,
) -> None:
    """Make a key. It is shown once and cannot be shown again."""
    given = {
        "name": name,
        "scopes": list(scopes) or None,
        "models": list(models) or None,
        "rpm": rpm,
        "tpm": tpm,
        "concurrency": concurrency,
        "daily_tokens": daily_tokens,
        "expires_at": expires,
    }
    body = {field: value for field, value in given.items() if value is not None}
    gateway.show(gateway.call("POST", PATH, body=body), _issued)


@keys.command("list", epilog="Example: loragate keys list --json")
@click.option("--after", help="Id of the last key already seen.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@session
def list_keys(gateway: Session, after: str | None, limit: int) -> None:
    """All keys, oldest first, revoked ones included."""
    gateway.show(gateway.call("GET", PATH, query={"after": after, "limit": limit}), _listed)


@keys.command(epilog="Example: loragate keys show k1A9fZq27LmP")
@click.argument("key_id", metavar="ID")
@session
def show(gateway: Session, key_id: str) -> None:
    """One key; its secret is never shown."""
    gateway.show(gateway.call("GET", f"{PATH}/{segment(key_id)}"), _shown)


@keys.command(epilog="Example: loragate keys rotate k1A9fZq27LmP --grace 1h")
@click.argument("key_id", metavar="ID")
@click.option("--grace", type=Span(), default="1h", show_default=True, help="How long the old key stays good.")
@session
def rotate(gateway: Session, key_id: str, grace: int) -> None:
    """Give a key a new secret; the old one ends when the grace does."""
    answer = gateway.call("POST", f"{PATH}/{segment(key_id)}/rotate", body={"grace_s": grace})
    gateway.show(answer, _issued)


@keys.command(epilog="Example: loragate keys revoke k1A9fZq27LmP")
@click.argument("key_id", metavar="ID")
@session
def revoke(gateway: Session, key_id: str) -> None:
    """End a key for good, at once."""
    gateway.show(gateway.call("DELETE", f"{PATH}/{segment(key_id)}"), _shown)


def _issued(key: dict[str, Any]) -> None:
    click.echo(key.get("key", ""))
    click.echo(f"This is the key of {output.text(key.get('name'))} (id {output.text(key.get('id'))}).", err=True)
    click.echo("Keep it now: it is not stored and cannot be shown again.", err=True)


def _listed(page: dict[str, Any]) -> None:
    items = page["data"]
    if items:
        output.table(COLUMNS, [_row(key) for key in items])
    output.more(items, page["has_more"], items[-1]["id"] if items else None)


def _shown(key: dict[str, Any]) -> None:
    output.pairs(zip((column.lower() for column in COLUMNS), _row(key), strict=True))


def _row(key: dict[str, Any]) -> tuple[object, ...]:
    limits = ", ".join(f"{key[name]}{unit}" for name, unit in LIMITS if key.get(name) is not None)
    times = tuple(output.moment(key.get(name)) for name in ("expires_at", "created_at", "revoked_at"))
    return (key["id"], key["name"], key["scopes"], key["models"] or "all", limits, *times)
