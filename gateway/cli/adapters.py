"""`loragate adapters …`: what there is, what answers, what the engines have, who moved it."""

from __future__ import annotations

from typing import Any

import click

from adapters.errors import InvalidName
from adapters.names import check_version
from gateway.cli import output, verdict
from gateway.cli.client import Refused, segment
from gateway.cli.intake import send
from gateway.cli.keys import LIMITS
from gateway.cli.session import Session, session

PATH = "/admin/v1/adapters"
WHY = "Kept in the adapter's history."
LOAD_TIMEOUT_S = 600.0  # copying and loading gigabytes of weights into several engines


def digits(_: click.Context, __: click.Parameter, version: str | None) -> str | None:
    """A version as people paste it: its 12 digits, or the whole `name@<12 digits>` of an answer."""
    if version is None:
        return None
    try:
        return check_version(version.rpartition("@")[2])
    except InvalidName:
        raise click.BadParameter("a version is 12 hex digits; `loragate adapters show NAME` lists them.") from None


upload_option = click.option(
    "--upload", is_flag=True, help="Send SOURCE from this machine. Done by itself where the gateway is on another one."
)


@click.group()
def adapters() -> None:
    """LoRA adapters: what is registered, what answers, what the engines have.

    Example: loragate adapters register ./my-adapter --name customer-service --promote
    """


@adapters.command(
    short_help="Check, store and load an adapter.",
    epilog="Example: loragate adapters register ./my-adapter --name customer-service --promote",
)
@click.argument("source")
@click.option("--name", required=True, help="The public name, which callers send as `model`.")
@click.option("--promote", is_flag=True, help="Let the name answer with it at once.")
@click.option("--notes", default="", help="Anything worth remembering about this version.")
@upload_option
@session
def register(gateway: Session, source: str, name: str, promote: bool, notes: str, upload: bool) -> None:
    """Check SOURCE, store it as a new version and load it into every engine.

    SOURCE is a folder in PEFT's format, an archive of one (.tar.gz, .zip), hf://owner/repo@revision/folder,
    s3://bucket/prefix, gs://bucket/prefix, or the https URL of an archive.
    """
    fields = {"name": name, "promote": promote, "notes": notes}
    gateway.show(send(gateway, PATH, source, fields, upload=upload), _shown)


@adapters.command("list", epilog="Example: loragate adapters list")
@click.option("--after", help="Name of the last adapter already seen.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@session
def list_adapters(gateway: Session, after: str | None, limit: int) -> None:
    """All adapters by name."""
    gateway.show(gateway.call("GET", PATH, query={"after": after, "limit": limit}), _listed)


@adapters.command(epilog="Example: loragate adapters show customer-service")
@click.argument("name")
@session
def show(gateway: Session, name: str) -> None:
    """One adapter with all its versions and where each is loaded."""
    gateway.show(gateway.call("GET", f"{PATH}/{segment(name)}"), _shown)


@adapters.command(
    short_help="Say whether an adapter could be served.", epilog="Example: loragate adapters check ./my-adapter"
)
@click.argument("source")
@upload_option
@session
def check(gateway: Session, source: str, upload: bool) -> None:
    """Say whether SOURCE (as `register` takes it) could be served, without storing or loading it."""
    verdict.show(gateway, lambda: send(gateway, f"{PATH}/check", source, {}, upload=upload))


@adapters.command(
    short_help="Load a version into every engine.",
    epilog="Example: loragate adapters load customer-service 0123456789ab",
)
@click.argument("name")
@click.argument("version", required=False, callback=digits)
@click.option("--why", default="", help=WHY)
@session
def load(gateway: Session, name: str, version: str | None, why: str) -> None:
    """Load VERSION (12 hex digits; default: the live one) into every engine and keep it there."""
    _change(gateway, name, "load", {"why": why} if version is None else {"version": version, "why": why})


@adapters.command(
    short_help="Take a version out of every engine.",
    epilog="Example: loragate adapters unload customer-service 0123456789ab",
)
@click.argument("name")
@click.argument("version", callback=digits)
@click.option("--why", default="", help=WHY)
@session
def unload(gateway: Session, name: str, version: str, why: str) -> None:
    """Take VERSION (12 hex digits) out of every engine; it stays in the store."""
    _change(gateway, name, "unload", {"version": version, "why": why})


@adapters.command(
    short_help="Let the name answer with a version.",
    epilog="Example: loragate adapters promote customer-service 0123456789ab",
)
@click.argument("name")
@click.argument("version", required=False, callback=digits)
@click.option("--why", default="", help=WHY)
@session
def promote(gateway: Session, name: str, version: str | None, why: str) -> None:
    """Let the public name answer with VERSION (12 hex digits; default: the newest)."""
    if version is None:
        newest_first = gateway.call("GET", f"{PATH}/{segment(name)}")["versions"]
        if not newest_first:
            raise Refused(f"{name} has no version. Register one first.")
        version = newest_first[0]["version"]
    _change(gateway, name, "promote", {"version": version, "why": why})


@adapters.command(
    short_help="Try a version on a share of the callers.",
    epilog="Example: loragate adapters canary customer-service 0123456789ab --percent 10",
)
@click.argument("name")
@click.argument("version", required=False, callback=digits)
@click.option("--percent", type=click.FloatRange(0, 100, min_open=True), help="Share of the callers.")
@click.option("--stop", is_flag=True, help="End the canary: the live version answers everybody.")
@click.option("--min-requests", type=click.IntRange(1), help="Of each arm, before anything is compared. [default: 50]")
@click.option("--max-error-increase", type=click.FloatRange(0, 1), help="Share of failed requests. [default: 0.02]")
@click.option("--max-latency-ratio", type=click.FloatRange(1), help="Canary by live. [default: 1.5]")
@click.option("--max-finish-change", type=click.FloatRange(0, 1), help="Share of finish reasons. [default: 0.15]")
@click.option("--why", default="", help=WHY)
@session
def canary(
    gateway: Session,
    /,
    name: str,
    version: str | None,
    percent: float | None,
    stop: bool,
    why: str,
    **given: float | None,
) -> None:
    """Let VERSION answer a share of the callers of NAME, always the same ones.

    The gateway ends it by itself when it fails more often, is slower or ends its answers differently than the live
    version, and writes the reason to the history. `promote` makes it live; --stop ends it.
    """
    if stop == (percent is not None):
        raise click.UsageError("Say --percent to begin or change a canary, or --stop to end it.")
    if not stop and version is None:
        raise click.UsageError("Name the version to try, by its 12 digits; `loragate adapters show NAME` lists them.")
    body: dict[str, Any] = {"percent": 0 if stop else percent, "why": why}
    if version is not None:
        body["version"] = version
    rules = {rule: value for rule, value in given.items() if value is not None}
    _change(gateway, name, "canary", {**body, "rules": rules} if rules else body)


@adapters.command(epilog="Example: loragate adapters rollback customer-service --why 'wrong prices'")
@click.argument("name")
@click.option("--why", default="", help=WHY)
@session
def rollback(gateway: Session, name: str, why: str) -> None:
    """Let the public name answer with the version before."""
    _change(gateway, name, "rollback", {"why": why})


@adapters.command(
    short_help="Limit all callers of an adapter together.",
    epilog="Example: loragate adapters limit customer-service --rpm 600 --concurrency 8",
)
@click.argument("name")
@click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute.")
@click.option("--tpm", type=click.IntRange(min=1), help="Tokens per minute.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once.")
@click.option("--daily-tokens", type=click.IntRange(min=1), help="Tokens per UTC day.")
@click.option("--none", "none", is_flag=True, help="First take away every limit of its own.")
@click.option("--why", default="", help=WHY)
@session
def limit(gateway: Session, /, name: str, none: bool, why: str, **given: int | None) -> None:
    """Limit all callers of NAME together, whatever their keys allow. What is not named stays.

    An adapter without a limit of its own has that of the settings (model_limits), if there is one.
    """
    change = {field: value for field, value in given.items() if none or value is not None}
    if not change:
        raise click.UsageError("Name a limit, such as --rpm 600, or --none to take them away.")
    path = f"{PATH}/{segment(name)}"
    gateway.show(gateway.call("PATCH", path, body={**change, "why": why}), _shown)


@adapters.command(
    short_help="Who moved what, when and why.", epilog="Example: loragate adapters history customer-service --limit 20"
)
@click.argument("name")
@click.option("--before", type=click.IntRange(1), help="Id of the last event already seen.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@session
def history(gateway: Session, name: str, before: int | None, limit: int) -> None:
    """What happened to NAME, the newest first; also after it was removed."""
    query = {"before": before, "limit": limit}
    gateway.show(gateway.call("GET", f"{PATH}/{segment(name)}/history", query=query), _told)


@adapters.command(
    short_help="Remove an adapter or a version.", epilog="Example: loragate adapters remove customer-service"
)
@click.argument("name")
@click.argument("version", required=False, callback=digits)
@click.option("--why", default="", help=WHY)
@session
def remove(gateway: Session, name: str, version: str | None, why: str) -> None:
    """Remove an adapter (or one VERSION that is not live) from the engines and from the store."""
    path, query = f"{PATH}/{segment(name)}", {"version": version, "why": why or None}
    answer = gateway.call("DELETE", path, query=query, timeout_s=LOAD_TIMEOUT_S)
    gateway.show(answer, lambda gone: click.echo(f"Removed {name}: {', '.join(gone['removed']) or 'no version'}."))


def _change(gateway: Session, name: str, verb: str, body: dict[str, Any]) -> None:
    answer = gateway.call("POST", f"{PATH}/{segment(name)}/{verb}", body=body, timeout_s=LOAD_TIMEOUT_S)
    gateway.show(answer, _shown)


def _listed(page: dict[str, Any]) -> None:
    items = page["data"]
    if items:
        columns = ("NAME", "LIVE", "PREVIOUS", "VERSIONS", "LOADED")
        output.table(columns, [_row(adapter) for adapter in items])
    output.more(items, page["has_more"], items[-1]["name"] if items else None)


def _row(adapter: dict[str, Any]) -> tuple[object, ...]:
    versions = adapter["versions"]
    live = next((version for version in versions if version["version"] == adapter["live"]), None)
    replicas = live["replicas"] if live is not None else []
    loaded = f"{sum(replica['state'] in ('resident', 'standby') for replica in replicas)}/{len(replicas)}"
    return (adapter["name"], adapter["live"], adapter["previous"], len(versions), loaded)


def _told(page: dict[str, Any]) -> None:
    events = page["data"]
    if events:
        rows = [(output.moment(e["at"]), e["what"], e["version"], e["by"], e["why"]) for e in events]
        output.table(("WHEN", "WHAT", "VERSION", "BY", "WHY"), rows)
    output.more(events, page["has_more"], events[-1]["id"] if events else None, option="--before")


def _shown(adapter: dict[str, Any]) -> None:
    canary = adapter.get("canary")
    split = canary and f"{canary['version']} for {canary['percent']:g} % of callers: {canary['standing']}"
    limits = [f"{given}{unit}" for field, unit in LIMITS if (given := (adapter.get("limits") or {}).get(field))]
    parts = [(name, adapter.get(name)) for name in ("name", "live", "previous")]
    output.pairs([*parts, ("canary", split), ("owner", adapter.get("owner")), ("limits", limits)])
    if canary is not None:
        _arms(canary)
    rows = [
        (
            version["version"],
            f"{version['state']}, pinned" if version["pinned"] else version["state"],
            output.moment(version["created_at"]),
            version["rank"],
            output.size(version["size_bytes"]),
            [
                f"{replica['url']} {replica['state']} {replica['reason'] or ''}".strip()
                for replica in version["replicas"]
            ],
            version["source"],
            version.get("registered_by"),
            version.get("notes"),
        )
        for version in adapter["versions"]
    ]
    output.table(("VERSION", "STATE", "CREATED", "RANK", "SIZE", "ENGINES", "SOURCE", "BY", "NOTES"), rows)


def _arms(canary: dict[str, Any]) -> None:
    """What this gateway has seen of both arms."""
    rows = [
        (
            arm,
            seen["requests"],
            seen["errors"],
            seen["left"],
            _seconds(seen["first_token_s"]),
            _seconds(seen["per_token_s"]),
            _seconds(seen["whole_answer_s"]),
            [f"{reason} {count}" for reason, count in seen["finish_reasons"].items()],
        )
        for arm, seen in (("live", canary["live"]), ("canary", canary["canary"]))
    ]
    columns = ("ARM", "REQUESTS", "ERRORS", "LEFT", "FIRST TOKEN", "PER TOKEN", "WHOLE ANSWER", "FINISH REASONS")
    output.table(columns, rows)


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} s"
