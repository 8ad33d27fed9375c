"""What `train rerun` does: the run found on this machine, its ingredients compared, trained again, judged.

Must not show anything but progress, on stderr. Imported when a run is repeated.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from adapters.errors import InvalidRequest
from gateway.cli import trainer, versions
from gateway.cli.client import Refused
from gateway.cli.session import Session
from training import lineage
from training import rerun as again
from training.digests import Digests
from training.export.bundle import free
from training.places import Places

JOB = "ftjob-"


def rerun(gateway: Session, text: str, *, target: Path | None, base: Path | None, anyway: bool) -> dict[str, Any]:
    """The document of one rerun. InvalidRequest, Refused, ChildFailed, TrainingFailed."""
    places = Places(trainer.here(gateway.data_dir))
    folder = _found(gateway, places, text)
    manifest = _manifest(folder)
    final = free(target) if target is not None else None
    at = base.absolute() if base is not None else lineage.base_of(folder)
    if not (at / "config.json").is_file():
        raise InvalidRequest(f"The base {manifest['base']['id']} is not in {at} any more. Name its folder with --base.")
    python = trainer.interpreter(places.data, again.devices(manifest))
    again.check_devices(manifest, python.facts())
    digests = Digests(places.root / "digests.json")
    changed = again.changed(manifest, folder, at, python.facts(), digests)
    if not anyway:
        again.refuse(changed)
    for each in changed[:5]:
        click.echo(f"Not as it was: {each.sentence}", err=True)
    room = final.parent if final is not None else places.root
    room.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=room, prefix="rerun-"))
    try:
        settings = again.prepare(manifest, folder, fresh, at)
        with trainer.steps("Training again") as show:
            again.train(python, manifest, settings, show)
        verdict = again.judge(manifest, fresh / "out", changed)
        if final is not None:
            os.replace(fresh / "out", final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return {
        "object": "rerun",
        "job": manifest.get("job"),
        "name": manifest.get("name"),
        "version": manifest.get("version"),
        "path": str(final) if final is not None else None,
        "verdict": verdict.document(),
    }


def _found(gateway: Session, places: Places, text: str) -> Path:
    """The job's folder."""
    given = versions.as_folder(text)
    if given is not None:
        return given
    if text.startswith(JOB) and text.removeprefix(JOB).isalnum():
        return places.job(text)
    name, at, version = text.partition("@")
    job = None
    if not at:
        chosen = versions.choose(gateway, name)
        version, job = chosen.version, (chosen.lineage or {}).get("job")
    if isinstance(job, str) and job.removeprefix(JOB).isalnum() and places.job(job).is_dir():
        return places.job(job)
    for file in sorted(places.jobs.glob(f"*/{lineage.FILE}")):
        known = lineage.read(file.parent) or {}
        if known.get("version") == version and known.get("name") == name:
            return file.parent
    raise Refused(
        f"No job on this machine made {name}@{version}, so there is no data to train it again from. Run this where its "
        "worker is (--data-dir names the data directory); `loragate jobs list` shows the jobs."
    )


def _manifest(folder: Path) -> dict[str, Any]:
    found = lineage.read(folder)
    if found is None or not lineage.is_manifest(found) or not found.get("weights"):
        raise InvalidRequest(
            f"{folder.name} has no manifest: it did not end, or it is older than manifests are. Train it anew."
        )
    return found
