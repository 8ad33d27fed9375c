"""`loragate feedback …`: what callers said about answers: list, export as training data, remove."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from adapters.errors import InvalidRequest
from gateway.cli import output
from gateway.cli.client import segment
from gateway.cli.session import Session, session

PATH = "/admin/v1/feedback"
AT_ONCE = 200  # 64 kB each at most: a page stays far below what one answer may have
COLUMNS = ("ID", "CREATED", "MODEL", "VERSION", "KEY", "RATING", "CORRECTED", "TURNS", "NOTE")
C = TypeVar("C", bound=Callable[..., Any])


def filters(command: C) -> C:
    """--name, --version, --key, --user."""
    for option in (
        click.option("--user", help="Of this user, in the word that the caller sent."),
        click.option("--key", help="Id of the key that sent it."),
        click.option("--version", help="The version that answered: 12 hex digits."),
        click.option("--name", help="Public name of the model."),
    ):
        command = option(command)
    return command


@click.group()
def feedback() -> None:
    """What callers said about answers (POST /v1/feedback): corrections become the next run's data.

    Example: loragate feedback export --name customer-service --to corrections.jsonl
    """


@feedback.command("list", epilog="Example: loragate feedback list --name customer-service --full")
@filters
@click.option("--full", is_flag=True, help="Show the words, too.")
@click.option("--after", help="Id of the last one already seen.")
@click.option("--limit", type=click.IntRange(1, AT_ONCE), default=100, show_default=True)
@session
def list_feedback(
    gateway: Session,
    name: str | None,
    version: str | None,
    key: str | None,
    user: str | None,
    full: bool,
    after: str | None,
    limit: int,
) -> None:
    """Oldest first. Without --full no conversation is shown."""
    asked = _asked(name, version, key, user) | {"after": after, "limit": limit}
    gateway.show(gateway.call("GET", PATH, query=asked), _full if full else _listed)


@feedback.command(epilog="Example: loragate feedback export --name customer-service --to corrections.jsonl")
@filters
@click.option("--to", "to", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option(
    "--form",
    type=click.Choice(("chat", "preference")),
    default="chat",
    show_default=True,
    help="chat: the right answers, for sft. preference: right and wrong ones, for dpo.",
)
@click.option("--with-good", is_flag=True, help="Answers that were rated good count as right, too.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@session
def export(
    gateway: Session,
    name: str | None,
    version: str | None,
    key: str | None,
    user: str | None,
    to: Path,
    form: str,
    with_good: bool,
    force: bool,
) -> None:
    """Write corrections as JSONL in OpenAI's form, which `loragate datasets check` takes."""
    from training.corrections import rows

    if to.exists() and not force:
        raise InvalidRequest(f"{to} exists. Name another file, or add --force.")
    made = rows(_all(gateway, _asked(name, version, key, user)), form=form, with_good=with_good)
    if made.rows:
        _write(to, made.rows)
    document = {"file": str(to) if made.rows else None, "form": form, "rows": len(made.rows), "feedback": made.seen}
    gateway.show(document | {"left_out": dict(made.left_out)}, _exported)


@feedback.command(epilog="Example: loragate feedback remove fb-12, or: loragate feedback remove --user u-4711")
@click.argument("feedback_ids", metavar="[ID]...", nargs=-1)
@filters
@session
def remove(
    gateway: Session,
    feedback_ids: tuple[str, ...],
    name: str | None,
    version: str | None,
    key: str | None,
    user: str | None,
) -> None:
    """Forget feedback for good: by id, or all of a model, version, key or user."""
    asked = {name: value for name, value in _asked(name, version, key, user).items() if value is not None}
    if bool(feedback_ids) == bool(asked):
        raise click.UsageError("Give ids, or one or more of --name, --version, --key, --user.")
    if asked:
        answer = gateway.call("DELETE", PATH, query=asked)
    else:
        gone = [gateway.call("DELETE", f"{PATH}/{segment(each)}")["removed"] for each in feedback_ids]
        answer = {"removed": sum(gone)}
    gateway.show(answer, lambda found: click.echo(f"Removed {found['removed']}."))


def _asked(name: str | None, version: str | None, key: str | None, user: str | None) -> dict[str, Any]:
    return {"model": name, "version": version, "key": key, "user": user}


def _all(gateway: Session, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    after, has_more = None, True
    while has_more:
        page = gateway.call("GET", PATH, query={**asked, "after": after, "limit": AT_ONCE})
        yield from page["data"]
        has_more = page["has_more"] and bool(page["data"])
        after = page["data"][-1]["id"] if page["data"] else None


def _write(to: Path, rows: tuple[Mapping[str, Any], ...]) -> None:
    """Whole or not at all, and for nobody else's eyes: these are people's conversations."""
    part = to.with_name(f".{to.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=True) + "\n")
        part.replace(to)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidRequest(f"{to} cannot be written: {error.strerror}. Name another file.") from None


def _listed(page: dict[str, Any]) -> None:
    items = page["data"]
    if items:
        output.table(COLUMNS, [_row(item) for item in items])
    output.more(items, page["has_more"], items[-1]["id"] if items else None)


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    shown = (item["id"], output.moment(item["created_at"]), item["model"], item["version"], item["key"])
    note = item["note"] is not None
    return (*shown, item["rating"], item["correction"] is not None, len(item["messages"]), note)


def _full(page: dict[str, Any]) -> None:
    items = page["data"]
    for item in items:
        click.echo(f"{item['id']}  {output.moment(item['created_at'])}  {output.text(item['model'])}")
        said = [(message["role"], message.get("content")) for message in item["messages"]]
        said += [(name, item[name]) for name in ("answer", "correction", "rating", "note", "user") if item[name]]
        output.pairs((f"  {name}", text) for name, text in said)
    output.more(items, page["has_more"], items[-1]["id"] if items else None)


def _exported(document: dict[str, Any]) -> None:
    if document["file"] is None:
        click.echo(f"Nothing to export: {document['feedback']} pieces of feedback, none with a right answer.")
    else:
        click.echo(f"{document['rows']} rows are in {output.text(document['file'])}.")
    for reason, count in document["left_out"].items():
        click.echo(f"Left out: {count}, {reason}.", err=True)
    if document["file"] is not None:
        click.echo(f"Next: loragate datasets check {output.text(document['file'])}", err=True)
