"""What `train plan` does: the gateway asked, the data read, the plan made, the templates compared.

Must not show anything but progress, on stderr. Imported when a plan is made: it needs the extra `train`.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from gateway.cli.client import Refused
from gateway.cli.session import Session
from gateway.local.display import Display
from gateway.local.environments import Environments
from gateway.local.hardware import look
from gateway.local.pins import kinds
from gateway.local.places import Places
from gateway.local.trainer import machine
from gateway.settings import data_dir
from training import parity, template
from training import places as training_places
from training.facts import Facts
from training.measure import Measured, measure
from training.plan import Settled, settle
from training.recipe import FILE_ID, Recipe, load

DEFAULT_MAX_LORA_RANK = 16  # vLLM's own


def planned(
    gateway: Session,
    path: Path,
    changes: Sequence[str],
    base: Path | None,
    max_lora_rank: int | None,
    compare: bool,
) -> dict[str, Any]:
    """The plan's document with `parity`, a sentence. Raises what refuses it."""
    recipe = load(path, changes)
    facts = _facts(gateway, base, max_lora_rank)
    chosen = template.choose(facts.base, recipe.template)
    measured = _measured(recipe, facts, chosen, data_dir(os.environ, gateway.data_dir))
    settled = settle(recipe, measured.facts, facts)
    said = _compared(gateway, settled, facts, measured, compare and base is None)
    return {**settled.document(), "parity": said, "data": list(measured.reports)}


def _facts(gateway: Session, base: Path | None, max_lora_rank: int | None) -> Facts:
    here = machine(look(os.environ))
    if base is not None:
        folder = base.absolute()
        return Facts.look(folder.name, folder, max_lora_rank or DEFAULT_MAX_LORA_RANK, here)
    status = gateway.call("GET", "/admin/v1/status")
    if not status.get("base") or not status.get("base_root"):
        raise Refused("No engine of the gateway has said yet which base it serves. `loragate status` says why.")
    root = Path(status["base_root"])
    return Facts.look(status["base"], root, max_lora_rank or int(status["max_lora_rank"]), here)


def _measured(recipe: Recipe, facts: Facts, chosen: template.Template, data: Path) -> Measured:
    files = training_places.Places(data).files
    columns = (TextColumn("reading the data"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        return measure(
            recipe,
            facts.base.folder,
            locate=lambda name: files / name if FILE_ID.fullmatch(name) else Path(name),
            kwargs=dict(chosen.kwargs),
            by_answer=chosen.by_answer,
            on_progress=lambda done, in_all: bars.update(task, completed=done, total=in_all),
        )


def _compared(gateway: Session, settled: Settled, facts: Facts, measured: Measured, wanted: bool) -> str:
    """What the comparison of templates says; NotServable where they differ."""
    if not wanted:
        return "not compared"
    python = training_python(data_dir(os.environ, gateway.data_dir))
    if python is None:
        return "not compared: there is no training environment yet; the first run makes it, and compares then"
    click.echo("Comparing the trainer's tokens of real rows with the engine's (up to a minute) …", err=True)

    async def render(
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        chat_template_kwargs: Mapping[str, Any] | None,
    ) -> Sequence[int]:
        body = {
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "chat_template_kwargs": chat_template_kwargs,
        }
        answer = await asyncio.to_thread(gateway.call, "POST", "/admin/v1/render", body=body)
        return list(answer["tokens"])

    with tempfile.TemporaryDirectory(prefix="loragate-plan-") as scratch:
        check = parity.check(measured.samples, settled, facts.base.folder, python, render, Path(scratch))
        return asyncio.run(check).sentence


def training_python(data: Path) -> Path | None:
    """The interpreter of the training environment, where there is one; nothing is made, so nothing is shown."""
    display = Display(io.StringIO(), clock=time.monotonic)
    environments = Environments(Places(data), look(os.environ), os.environ, display, time.monotonic)
    return environments.existing(kinds()["training"])
