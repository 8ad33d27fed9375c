"""`loragate migrate …`: out of OpenAI's fine-tuning, step by step: fetch, record, recipe, compare.

Words and options only: what is done is training/migrate's. OpenAI's key comes from the environment alone, so that it
stands in no shell history and in no list of processes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapters.errors import InvalidRequest
from gateway.cli import output
from gateway.cli.counting import counting
from gateway.cli.inference import inference_key, plain_key, public_url
from gateway.cli.session import Session, session

if TYPE_CHECKING:
    from training.migrate.compare import Comparison
    from training.migrate.fetch import Fetched
    from training.migrate.golden import Prompt
    from training.migrate.record import Recorded

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
C = TypeVar("C", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
at_openai = click.option(
    "--base-url", default=OPENAI, envvar="OPENAI_BASE_URL", show_default=True, help="The old service, with /v1."
)


def asking(command: C) -> C:
    """--max-tokens and --at-once."""
    for option in (
        click.option("--at-once", type=click.IntRange(1, 64), default=4, show_default=True, help="Questions at once."),
        click.option(
            "--max-tokens", type=click.IntRange(1, 131_072), default=1024, show_default=True, help="Of one answer."
        ),
    ):
        command = option(command)
    return command


@click.group()
def migrate() -> None:
    """Bring fine-tuned models over from OpenAI's service. docs/migrate-from-openai.md has every step.

    Example: loragate migrate fetch --to openai
    """


@migrate.command(epilog="Example: OPENAI_API_KEY=… loragate migrate fetch --to openai")
@click.option("--to", "to", type=FOLDER, required=True, help="The folder; run again, it fetches what is missing.")
@at_openai
@as_json
def fetch(to: Path, base_url: str, as_json: bool) -> None:
    """Copy jobs, training and validation files, checkpoints, events and results. Deletes nothing."""
    from training.migrate.fetch import fetch as fetch_all
    from training.migrate.remote import open_remote

    async def run() -> Fetched:
        async with open_remote(base_url, _openai_key(), who=f"the key in {KEY}") as remote:
            return await fetch_all(
                remote, to, now=time.time(), tell=lambda line: click.echo(output.text(line), err=True)
            )

    found = asyncio.run(run())
    if as_json:
        output.document(found.document())
        return
    click.echo(
        f"{to} has {len(found.jobs)} jobs and {len(found.files)} files; "
        f"{found.fresh} files ({output.size(found.bytes)}) are new."
    )
    for gone in found.missing:
        click.echo(f"Not to be had: the {gone.what} file {gone.file} of {gone.job}: {output.text(gone.why)}", err=True)


@migrate.command(
    epilog="Example: loragate migrate record --model ft:gpt-4o-mini-2024-07-18:acme:shop:AbC "
    "--prompts openai/files/file-123.jsonl --to golden.jsonl"
)
@click.option("--model", required=True, help="The old model, while it answers.")
@click.option("--prompts", type=FILE, required=True, help="JSONL with `messages`; an answer at the end is left out.")
@click.option("--to", "to", type=FILE, required=True, help="The file; run again, it asks what is missing.")
@click.option("--rows", type=click.IntRange(min=1), help="At most so many questions, drawn evenly.")
@click.option("--price-in", type=click.FloatRange(min=0), help="Dollars for a million tokens of prompts.")
@click.option("--price-out", type=click.FloatRange(min=0), help="Dollars for a million tokens of answers.")
@click.option("--dry-run", is_flag=True, help="Only the estimate.")
@click.option("--yes", is_flag=True, help="Do not ask whether to begin.")
@asking
@at_openai
@as_json
def record(
    model: str,
    prompts: Path,
    to: Path,
    rows: int | None,
    price_in: float | None,
    price_out: float | None,
    dry_run: bool,
    yes: bool,
    max_tokens: int,
    at_once: int,
    base_url: str,
    as_json: bool,
) -> None:
    """Keep what the old model answers, to compare the new one with. This costs what its answers cost there."""
    from training.migrate.golden import read_prompts
    from training.migrate.record import estimate, remaining

    asked, left = read_prompts(prompts, rows)
    for each in left[:10]:
        click.echo(f"Line {each.number} is left out: {each.why}.", err=True)
    if len(left) > 10:
        click.echo(f"… and {len(left) - 10} more lines.", err=True)
    wanted = remaining(asked, model, to)
    recorded = len(asked) - len(wanted)
    cost = estimate(
        wanted, recorded, at_once=at_once, most_tokens=max_tokens, dollars_in=price_in, dollars_out=price_out
    )
    click.echo(cost.sentence(), err=True)
    if cost.dollars is None:
        click.echo("For the cost, give --price-in and --price-out as your provider's price list has them.", err=True)
    if dry_run:
        if as_json:
            output.document(cost.document())
        return
    if wanted and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("This spends money at the old service: add --yes to begin.")
        click.confirm("Begin?", abort=True, err=True)
    found = asyncio.run(_record(model, asked, to, max_tokens, at_once, base_url))
    if as_json:
        output.document(found.document())
    else:
        click.echo(f"{to} has {found.rows} answers of {model}; {found.fresh} are new.")
    if not found.greedy:
        click.echo("The model refuses temperature 0: it may answer otherwise another time.", err=True)
    for failure in found.failed[:10]:
        click.echo(f"Line {failure.row} was not answered: {output.text(failure.why)}", err=True)
    if found.failed:
        click.echo(f"{len(found.failed)} questions have no answer. Run this again to try them once more.", err=True)
        raise click.exceptions.Exit(1)


async def _record(
    model: str, asked: tuple[Prompt, ...], to: Path, max_tokens: int, at_once: int, base_url: str
) -> Recorded:
    from training.migrate.asking import Asker
    from training.migrate.record import record as record_all
    from training.migrate.remote import open_remote

    with counting(f"Recording {model}") as done:
        async with open_remote(base_url, _openai_key(), who=f"the key in {KEY}") as remote:
            asker = Asker(remote, model, most_tokens=max_tokens, clock=time.monotonic)
            return await record_all(asker, asked, to, at_once=at_once, now=time.time, done=done)


@migrate.command(epilog="Example: loragate migrate recipe openai --base Qwen3-4B --keep-names --golden golden.jsonl")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--base", help="The base to train on, as the gateway serves it. Default: whatever it serves.")
@click.option("--to", "to", type=FOLDER, help="Where the recipes go. Default: FOLDER/recipes.")
@click.option("--keep-names", is_flag=True, help="Call the adapters ft:… as they were: client code keeps its `model`.")
@click.option("--golden", type=FILE, help="Recorded answers that the new version must not fall behind on.")
@as_json
def recipe(
    folder: Path, base: str | None, to: Path | None, keep_names: bool, golden: Path | None, as_json: bool
) -> None:
    """Write a recipe for each fetched job that made a model."""
    from training.migrate.recipes import write_recipes

    found = write_recipes(folder, to or folder / "recipes", base=base, keep_names=keep_names, golden=golden)
    if as_json:
        output.document(found.document())
        return
    output.table(("MODEL THERE", "NAME HERE", "RECIPE"), [(each.model, each.name, each.file) for each in found.made])
    for each in found.passed:
        click.echo(f"No recipe for {each.job}: {output.text(each.why)}.", err=True)
    click.echo(f"Next: loragate train plan {output.text(found.made[0].file)}", err=True)


@migrate.command(epilog="Example: loragate migrate compare --golden golden.jsonl --model shop --to agreement")
@click.option("--golden", type=FILE, required=True, help="What `migrate record` wrote.")
@click.option("--model", required=True, help="A model of this gateway: a public name, or name@version.")
@click.option("--to", "to", type=FOLDER, help="Also write agreement.json and agreement.md into this folder.")
@click.option("--base-url", help="This gateway's public API, with /v1. Default: port 8000 beside the admin API.")
@asking
@session
def compare(
    gateway: Session, golden: Path, model: str, to: Path | None, base_url: str | None, max_tokens: int, at_once: int
) -> None:
    """Ask this gateway every recorded question and say how far the answers agree.

    Uses the key in LORAGATE_API_KEY, else makes one for the time of the comparison.
    """
    from training.migrate import folder as files
    from training.migrate.report import markdown, sentences

    url = base_url or public_url(gateway)
    with inference_key(gateway, "loragate migrate compare", model) as key:
        found = asyncio.run(_compare(golden, model, url, key, max_tokens, at_once))
    if to is not None:
        files.write(to / "agreement.json", found.document())
        files.write_text(to / "agreement.md", markdown(found))

    def for_people(_: dict[str, Any]) -> None:
        for line in sentences(found):
            click.echo(output.text(line))
        if to is not None:
            click.echo(f"The report is in {output.text(to / 'agreement.md')}.", err=True)

    gateway.show(found.document(), for_people)


async def _compare(golden: Path, model: str, url: str, key: str, max_tokens: int, at_once: int) -> Comparison:
    from training.migrate.asking import Asker
    from training.migrate.compare import compare as compare_all
    from training.migrate.golden import read_golden
    from training.migrate.remote import open_remote

    rows = read_golden(golden)
    with counting(f"Asking {model}") as done:
        async with open_remote(url, key, who="this key", inside=True) as remote:
            asker = Asker(remote, model, most_tokens=max_tokens, clock=time.monotonic)
            return await compare_all(asker, rows, at_once=at_once, done=done)


def _openai_key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise InvalidRequest(f"Set {KEY} to your key of the old service. It is sent there and nowhere else.")
    return plain_key(key, KEY)
