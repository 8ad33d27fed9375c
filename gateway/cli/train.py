"""`loragate train …`: what a recipe would do and take, before anything is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli import output
from gateway.cli.rerun import rerun
from gateway.cli.session import Session, session


@click.group()
def train() -> None:
    """Plan a training run, run it, or run it again.

    Example: loragate train plan configs/recipes/customer_service.yaml
    """


@train.command(
    short_help="What a run would do and take.",
    epilog="Example: loragate train plan configs/recipes/customer_service.yaml --set training.epochs=3",
)
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The base's folder: no gateway is asked then.",
)
@click.option("--max-lora-rank", type=click.IntRange(1, 512), help="With --base: the engine's. [default: 16]")
@click.option("--parity/--no-parity", default=True, help="Compare trainer's and engine's tokens of real rows.")
@session
def plan(
    gateway: Session, recipe: Path, changes: tuple[str, ...], base: Path | None, max_lora_rank: int | None, parity: bool
) -> None:
    """Read RECIPE and its data, decide every `auto`, and say what the run would do and take.

    Asks the running gateway which base it serves and which ranks; --base plans without one. Refuses what could not be
    served, with the nearest setting that works. Nothing is trained, stored or loaded.
    """
    from gateway.cli.planning import planned

    gateway.show(planned(gateway, recipe, changes, base, max_lora_rank, parity), shown)


@train.command(
    short_help="Train, evaluate, register, and put live.",
    epilog="Example: loragate train run configs/recipes/customer_service.yaml --then promote",
)
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option("--then", help="Instead of the recipe's: register, promote, keep, or canary:PERCENT.")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Larger is sooner.")
@click.option("--detach", is_flag=True, help="Do not watch: print the job, and end.")
@session
def run(
    gateway: Session, recipe: Path, changes: tuple[str, ...], then: str | None, priority: int, detach: bool
) -> None:
    """Make a job of RECIPE and watch it to its end: checked, trained, registered, evaluated, put live.

    Exit code 0 if it succeeded and the gate let it through, 1 otherwise. Ctrl-C ends the watching, not the job.
    """
    from gateway.cli.jobs import shown as job_shown
    from gateway.cli.watching import watched
    from training.recipe import load

    wanted = [*changes, *([f"then={_then(then)}"] if then is not None else [])]
    body = {"recipe": load(recipe, wanted).document(), "priority": priority}
    job = gateway.call("POST", "/admin/v1/jobs", body=body)
    if detach:
        gateway.show(job, job_shown)
        return
    click.echo(f"Job {job['id']}", err=True)
    watched(gateway, job["id"], job_shown)


def _then(text: str) -> str:
    """`canary:10` as the YAML of a recipe."""
    word, colon, percent = text.partition(":")
    return f"{{canary: {percent}}}" if colon and word == "canary" else text


train.add_command(rerun)


def shown(document: dict[str, Any]) -> None:
    """A plan for people."""
    method = document["llamafactory"]
    cut = document["truncated_rows"]
    valid = f", {document['valid_rows']:,} kept for validation" if document["valid_rows"] else ""
    batch = method["per_device_train_batch_size"] * method["gradient_accumulation_steps"] * max(1, document["gpus"])
    parts = sorted(document["memory"].items(), key=lambda item: -item[1])
    output.pairs(
        [
            ("adapter" if document["served"] == "adapter" else "model", document["name"]),
            ("base", document["base"]),
            ("rows", f"{document['rows']:,} trained, {document['dropped']:,} left out{valid}"),
            ("tokens", f"{document['tokens']:,} in all, {cut:,} rows cut ({document['truncated_tokens']:,} tokens)"),
            ("steps", f"{document['steps']:,} of {batch} rows, {document['epochs']:g} epochs"),
            ("memory", f"{document['memory_gb']:.1f} GB: " + ", ".join(f"{n} {s:.2g}" for n, s in parts if s >= 0.05)),
            ("disk", f"{document['disk_gb']:.2g} GB"),
            ("time", f"about {_long(document['seconds'])} on {_device(document)}"),
            ("served as", _served(document)),
            ("parity", document["parity"]),
        ]
    )
    click.echo()
    for note in document["notes"]:
        click.echo(f"- {output.text(note)}")


def _served(document: dict[str, Any]) -> str:
    if document["served"] != "adapter":
        return "a model of its own, in the job's folder"
    kwargs = document["chat_template_kwargs"]
    asked = f", asked with chat_template_kwargs {kwargs}" if kwargs else ""
    return f"an adapter of rank {document['rank']}{asked}"


def _device(document: dict[str, Any]) -> str:
    return "this processor" if document["device"] == "cpu" else f"{document['gpus']} GPU"


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
