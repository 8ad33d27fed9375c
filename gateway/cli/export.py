"""`loragate export …`: a version as files to hand on, merged into its base, quantised, and how each is served."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli import output
from gateway.cli.session import Session, session

TO = click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="Must not be there yet.")
BASE = click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The base model's folder. [default: what the gateway's engine serves, where it is on this machine]",
)
ON_THE_HUB = click.option("--base-model", metavar="OWNER/NAME", help="The base's id on the hub, for the model card.")
LICENSE = click.option("--license", "license_id", metavar="ID", help="For the model card, as the hub names it.")


@click.group()
def export() -> None:
    """Take an adapter, or a merged model, out of the gateway.

    NAME is an adapter's public name (its live version), NAME@VERSION one version, ./FOLDER something on this machine.

    Example: loragate export adapter customer-service --to customer-service.tar.gz
    """


@export.command(
    short_help="Two files, model card and manifest.",
    epilog="Example: loragate export adapter customer-service --to customer-service.tar.gz --license apache-2.0",
)
@click.argument("name")
@TO
@ON_THE_HUB
@LICENSE
@session
def adapter(gateway: Session, name: str, target: Path, base_model: str | None, license_id: str | None) -> None:
    """Write NAME with a model card and its lineage as an archive (.tar.gz) or a folder.

    `loragate adapters register` takes it as it is, on any gateway; so do PEFT, vLLM and the Hugging Face hub.
    """
    from gateway.cli import exporting

    gateway.show(exporting.adapter(gateway, name, target, base_model, license_id), _done)


@export.command(
    short_help="The base with the adapter in its weights.",
    epilog="Example: loragate export merged customer-service --base ./my-base --to ./customer-service-merged",
)
@click.argument("name")
@BASE
@TO
@ON_THE_HUB
@LICENSE
@click.option("--anyway", is_flag=True, help="Also into a base whose weights are not those that it was trained on.")
@session
def merged(
    gateway: Session,
    name: str,
    base: Path | None,
    target: Path,
    base_model: str | None,
    license_id: str | None,
    anyway: bool,
) -> None:
    """Merge NAME (or ./FOLDER) into its base and write a model of its own.

    What was saved is read back and compared: its weights must differ from the base's in every module of the adapter,
    and its logits must be those of the adapter on the base within a stated tolerance. Otherwise nothing is kept.
    """
    from gateway.cli import exporting

    made = exporting.merged(gateway, name, base, target, base_model=base_model, license_id=license_id, anyway=anyway)
    gateway.show(made, _done)


@export.command(
    short_help="The merged model in 4 bits (needs a GPU).",
    epilog="Example: loragate export gptq ./customer-service-merged --data rows.jsonl --to ./customer-service-gptq",
)
@click.argument("name")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSONL or text such as the model will see: it is calibrated on it.",
)
@click.option("--bits", type=click.Choice(["2", "3", "4", "8"]), default="4", show_default=True)
@BASE
@TO
@session
def gptq(gateway: Session, name: str, data: Path, bits: str, base: Path | None, target: Path) -> None:
    """Quantise a merged model (./FOLDER), or NAME after merging it, with GPTQ by LLaMA-Factory. Needs an NVIDIA GPU."""
    from gateway.cli import exporting

    gateway.show(exporting.gptq(gateway, name, data, int(bits), base, target), _done)


@export.command(
    short_help="A program for AWQ, by llm-compressor.",
    epilog="Example: loragate export awq ./customer-service-merged --data rows.jsonl --to ./cs-awq > awq.py",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help='JSONL of {"messages": …}.')
@TO
@session
def awq(gateway: Session, folder: Path, data: Path, target: Path) -> None:
    """Print a program that quantises the merged model in FOLDER with AWQ.

    LLaMA-Factory only reads AWQ models. llm-compressor, of the vLLM project, makes them; AutoAWQ is not kept any more.
    """
    from training.export.quantise import awq as program

    text = program(str(folder.absolute()), str(data.absolute()), str(target.absolute()))
    gateway.show({"object": "export.program", "tool": "llmcompressor", "program": text}, lambda _: click.echo(text))


@export.command(
    short_help="The vLLM command for it.", epilog="Example: loragate export serve ./customer-service-merged"
)
@click.argument("name")
@click.option("--base", help="The base's folder or hub id, for an adapter.")
@click.option("--as", "model", help="What clients ask for. [default: the adapter's name]")
@session
def serve(gateway: Session, name: str, base: str | None, model: str | None) -> None:
    """Print the command with which vLLM serves ./FOLDER, or NAME after it was exported."""
    from gateway.cli import exporting

    document = exporting.serve(gateway, name, base, model)

    def shown(_: object) -> None:
        click.echo(document["command"])
        for note in document["notes"]:
            click.echo(note, err=True)

    gateway.show(document, shown)


def _done(document: dict[str, object]) -> None:
    click.echo(document["path"])
    for note in (document["sentence"], *_notes(document)):
        click.echo(output.text(note), err=True)


def _notes(document: dict[str, object]) -> list[object]:
    notes = document.get("notes")
    return list(notes) if isinstance(notes, list | tuple) else []
