"""`loragate train rerun`: a run again, and whether the same weights come out. Belongs to the group in cli/train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli import output
from gateway.cli.client import Refused
from gateway.cli.session import Session, session


@click.command(
    short_help="Train again from the same, and compare.",
    epilog="Example: loragate train rerun customer-service --verify",
)
@click.argument("version_or_job")
@click.option("--verify", is_flag=True, help="Compare with the first run; exit code 1 where the weights differ.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Keep what is trained in this folder.")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The base's folder, if it is not where it was.",
)
@click.option("--anyway", is_flag=True, help="Also where data, settings or base are not what they were.")
@session
def rerun(
    gateway: Session, version_or_job: str, verify: bool, target: Path | None, base: Path | None, anyway: bool
) -> None:
    """Train VERSION_OR_JOB again from its own data and settings, in a fresh folder.

    NAME is the live version, NAME@VERSION one version, ftjob-… a job, ./FOLDER a job's folder; the data must be on this
    machine. On the same processor with the same packages the weights are the same, byte for byte. Where they are not,
    the first logged step whose figures differ is named, and what is not as it was.
    """
    if not verify and target is None:
        raise click.UsageError("Say --verify to compare with the first run, --to FOLDER to keep the result, or both.")
    from gateway.cli import rerunning

    document = rerunning.rerun(gateway, version_or_job, target=target, base=base, anyway=anyway)
    verdict = document["verdict"]
    if not verify:
        gateway.show(document, _kept)
        return
    if not verdict["equal"]:
        raise Refused(verdict["sentence"], {**document, "error": _error(verdict["sentence"])})
    gateway.show(document, lambda _: click.echo(verdict["sentence"]))


def _kept(document: dict[str, Any]) -> None:
    click.echo(document["path"])
    for change in document["verdict"]["changed"]:
        click.echo(f"Not as it was: {output.text(change)}", err=True)


def _error(message: str) -> dict[str, Any]:
    return {"message": message, "type": "cli_error", "param": None, "code": "not_reproduced"}
