"""`loragate eval …`: is a version better than the base and what is live, and would the gate let it through.

A client like the others: it asks the gateway's own `/v1`, and changes nothing there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import output
from gateway.cli.adapters import digits
from gateway.cli.client import Refused, Unreachable, find

if TYPE_CHECKING:
    from training.data.row import Row
    from training.evaluate.evaluation import Evaluation
    from training.evaluate.gate import Rules, Verdict
    from training.evaluate.general import General

PUBLIC_URL = "http://127.0.0.1:8000"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ENCODER = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)


@click.command(
    "eval",
    short_help="Compare a version with the base and what is live.",
    epilog="Example: loragate eval customer-service 0123456789ab --data held-out.jsonl --metric exact --min-gain 0.1",
)
@click.argument("name")
@click.argument("version", required=False, callback=digits)
@click.option(
    "--data",
    required=True,
    type=FILE,
    help="Held-out rows that end with an answer, in any form that can be trained on.",
)
@click.option(
    "--metric", default="rouge_l", show_default=True, help="exact, rouge_l, bleu, chrf, bertscore or likelihood."
)
@click.option("--min-gain", type=float, default=0.0, show_default=True, help="Over the base, at least.")
@click.option("--tolerance", type=click.FloatRange(0), help="How far below the live version its interval may reach.")
@click.option("--max-forgetting", type=click.FloatRange(0), help="Rise of the loss on the general set, nats a token.")
@click.option("--no-regression-on", type=FILE, help="Rows that must not get worse, as --data.")
@click.option("--max-rows", type=click.IntRange(1), default=500, show_default=True, help="Of --data, drawn by --seed.")
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True)
@click.option("--general/--no-general", default=True, show_default=True, help="Measure what was forgotten.")
@click.option("--bertscore", type=ENCODER, help="Also BERTScore, with the encoder in this folder.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the report's three files.")
@click.option("--url", default=PUBLIC_URL, show_default=True, help="The gateway's public port.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict and the figures as one JSON document.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the gateway keeps admin.key.")
@click.option("--admin-url", help="Where the admin API is; else LORAGATE_ADMIN_URL, else this machine's.")
def eval_(
    name: str,
    version: str | None,
    data: Path,
    out: Path | None,
    url: str,
    as_json: bool,
    data_dir: Path | None,
    admin_url: str | None,
    **given: Any,
) -> None:
    """Ask VERSION of NAME (12 hex digits; default: the newest), the live version and the base the same held-out rows.

    Ends with exit code 1 where the gate says no.
    """
    from gateway.cli import trainer
    from training.errors import GatewayAway
    from training.evaluate import report
    from training.evaluate.gate import Rules, gate
    from training.gatewayclient import Address

    place = find(os.environ, data_dir, admin_url)
    if place.key is None:
        raise Refused(f"There is no admin key at {place.source}. Name the data directory, or set LORAGATE_ADMIN_KEY.")
    rules = Rules.of(given)
    if given["bertscore"] is not None:
        given["trainer"] = trainer.interpreter(trainer.here(data_dir))
    try:
        with _progress() as on_progress:
            address = Address(url, place.url, place.key)
            found = asyncio.run(_evaluated(address, name, version, data, given, on_progress))
        verdict = gate(found, rules)
        files = [str(file) for file in report.write(found, rules, verdict, out)] if out is not None else []
    except GatewayAway as away:
        raise Unreachable(away.message) from None
    if as_json:
        whole = {"verdict": verdict.document(), "rules": rules.document(), **found.summary(), "files": files}
        output.document(whole)
    else:
        _shown(found, rules, verdict, files)
    if not verdict.passed:
        raise click.exceptions.Exit(1)


async def _evaluated(
    address: Any, name: str, version: str | None, data: Path, given: dict[str, Any], on_progress: Any
) -> Evaluation:
    from training.evaluate.bertscore import BertScore
    from training.evaluate.run import Ask, base_model, evaluate
    from training.gatewayclient import open_gateway

    guarded: Path | None = given["no_regression_on"]
    async with open_gateway(address) as gateway:
        known = await gateway.adapter(name)
        if known is None or not known["versions"]:
            raise Refused(f"There is no adapter {name[:128]}. `loragate adapters list` shows all.")
        chosen = version or str(known["versions"][0]["version"])
        asked = Ask(
            name,
            chosen,
            await base_model(gateway),
            live=known["live"],
            rows=rows(data),
            guarded=rows(guarded) if guarded is not None else None,
            general=_general(given["general"]),
            max_rows=given["max_rows"],
            seed=given["seed"],
            data=_described(data),
        )
        encoder: Path | None = given["bertscore"]
        alike = BertScore(given["trainer"], encoder) if encoder is not None else None
        return await evaluate(gateway, asked, bertscore=alike, on_progress=on_progress)


def rows(path: Path) -> Iterator[Row]:
    """The conversations of any file that training takes; Refused names the row that is none. DataRejected."""
    from training.data.reading import open_data
    from training.data.row import Row

    for item in open_data(path).rows():
        if isinstance(item, Row):
            yield item
        elif item.level == "error":
            where = f"Row {item.row} of {path}" if item.row is not None else str(path)
            raise Refused(f"{where} cannot be asked: {item.message} `loragate datasets check {path}` says more.")


def _general(wanted: bool) -> General | None:
    from training.evaluate.general import load

    return load() if wanted else None


def _described(data: Path) -> dict[str, Any]:
    with data.open("rb") as file:
        return {"file": data.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _shown(found: Evaluation, rules: Rules, verdict: Verdict, files: list[str]) -> None:
    from training.evaluate.evaluation import METRICS

    names = [name for name in METRICS if found.mean("candidate", name) is not None]
    cells = [
        [arm, model, *(None if (mean := found.mean(arm, name)) is None else f"{mean:.3f}" for name in names)]
        for arm, model in found.models.items()
    ]
    output.table(("", "MODEL", *(METRICS[name].title.upper() for name in names)), cells)
    for finding in verdict.findings:
        click.echo(f"{'passed ' if finding.passed else 'refused'}  {finding.sentence}")
    for caution in verdict.cautions:
        click.echo(f"note     {caution}")
    for file in files:
        click.echo(file)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with an estimate on stderr; silent where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = live.add_task(what, total=of)
            live.update(tasks[what], completed=done)

        yield on_progress
