"""What a worker does for a job (training/steps.py), put together: preparing, the trainer's start, concluding.

The gateway and the training environment are asked for anew each time: either may have moved. Must not know queues.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapters.sources.source import is_loopback
from training import concluding, parity
from training.concluding import Run, SetPhase
from training.errors import GatewayAway, TooFewExamples, TrainingFailed
from training.facts import Facts, Machine
from training.gatewayclient import Address, Gateway, open_gateway
from training.interpreter import Interpreter, beside_an_engine
from training.places import Places
from training.plan import Settled
from training.preparing import OUTPUT, SETTINGS, Prepared, prepare
from training.recipe import FILE_ID, Recipe, parse
from training.steps import Finished, Launch, Tell
from training.types import Job, Problem

TRACKERS = ("WANDB_", "MLFLOW_", "SWANLAB_", "TRACKIO_")  # their credentials, where a recipe reports to them
LEAST_EXAMPLES = 10  # of jobs that came through /v1/fine_tuning/jobs
COMING = frozenset({"starting", "restarting"})  # states of an engine that takes its memory only now
TOLD = 20  # findings of the data that become events


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pipeline is given: address: where the gateway is now (GatewayAway); environment: the training
    environment's interpreter, made if need be; existing: the same without making any; machine: what trains."""

    places: Places
    address: Callable[[], Address]
    environment: Callable[[], Awaitable[Path]]
    existing: Callable[[], Path | None]
    machine: Callable[[], Machine]
    lineage: Callable[[Job, Path, Settled], Mapping[str, Any]]
    after_training: Callable[[Job, Path, Gateway, Tell], Awaitable[Mapping[str, Any]]]


class Pipeline:
    """The Steps of real training."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    async def check(self, job: Job, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """Data read, checked and written; the plan; the templates compared. What was settled."""
        recipe = parse(job.recipe)
        async with open_gateway(self._around.address()) as gateway:
            facts = await self._facts(gateway, recipe)
            prepared = await asyncio.to_thread(prepare, recipe, facts, folder, self._locate)
            if job.request is not None:
                _enough(prepared)
            await _told(prepared, tell)
            python = await self._around.environment()
            scratch = folder / "parity"
            samples = prepared.measured.samples
            base = facts.base.folder
            found = await parity.check(samples, prepared.settled, base, python, gateway.render, scratch)
            await tell(found.sentence)
        return prepared.settled.document()

    def launch(self, job: Job, folder: Path) -> Launch:
        """LLaMA-Factory on the settings that were written; TrainingFailed where its environment is gone."""
        python = self._around.existing()
        if python is None:
            words = "The training environment is gone. Start the job again: its check makes a new one."
            raise TrainingFailed(Problem("no_environment", words))
        settled, recipe = Settled.from_document(job.settled or {}), parse(job.recipe)
        return Launch(
            argv=(str(python.with_name("llamafactory-cli")), "train", str(folder / SETTINGS)),
            env=trainer_environment(python, folder, recipe, settled, os.environ),
            cwd=folder,
            log=folder / "run.log",
            output=folder / OUTPUT,
            steps=settled.steps,
        )

    async def paused(self, job: Job) -> bool:
        """What the gateway says of the engine that it started here; nothing where none runs, or elsewhere."""
        try:
            address = self._around.address()
            if not _is_here(address):
                return False
            async with open_gateway(address) as gateway:
                states = {str(each["state"]) for each in (await gateway.status())["engines"]}
        except GatewayAway:
            return False  # its engine has ended with it
        agreed = parse(job.recipe).pause_engine
        if states & COMING or ("paused" in states and not agreed):
            raise GatewayAway("The engine that serves beside is not running now: the run starts when it is.")
        return "paused" in states

    async def borrow(self, job: Job, seconds: float) -> bool:
        """The engine of the gateway's machine, stopped where the recipe says `pause_engine` and that is ours."""
        if not parse(job.recipe).pause_engine or not _is_here(self._around.address()):
            return False
        async with open_gateway(self._around.address()) as gateway:
            await gateway.pause_engine(job.id, seconds)
        return True

    async def give_back(self, job: Job) -> None:
        """The engine starts again."""
        async with open_gateway(self._around.address()) as gateway:
            await gateway.resume_engine(job.id)

    async def back(self, job: Job) -> None:
        """GatewayAway where an engine may have been stopped for the job, and none is ready."""
        if not parse(job.recipe).pause_engine:
            return
        async with open_gateway(self._around.address()) as gateway:
            if not (await gateway.status())["ready"]:
                raise GatewayAway("The engine that was stopped for the training is not ready again yet.")

    async def finish(self, job: Job, folder: Path, tell: Tell, phase: SetPhase) -> Finished:
        """The adapter registered, evaluated, put live."""
        settled, recipe = Settled.from_document(job.settled or {}), parse(job.recipe)
        if settled.served != "adapter":
            return concluding.kept(Run(job, recipe, settled, folder, {}))
        if recipe.then != "keep":
            await self.back(job)  # first: what follows takes a while, and is begun again
        run = Run(job, recipe, settled, folder, {})
        await asyncio.to_thread(concluding.collect, run)
        lineage = await asyncio.to_thread(self._around.lineage, job, folder, settled)
        python = self._around.existing()
        run = Run(job, recipe, settled, folder, lineage, Interpreter(python) if python is not None else None)
        if recipe.then == "keep":
            return concluding.kept(run)
        async with open_gateway(self._around.address()) as gateway:
            more = await self._around.after_training(job, folder, gateway, tell)
            finished = await concluding.conclude(run, gateway, tell, phase)
        return Finished(finished.outcome, {**finished.result, **more})

    async def _facts(self, gateway: Gateway, recipe: Recipe) -> Facts:
        status = await gateway.status()
        base, root = status.get("base"), status.get("base_root")
        if not base or not root:
            raise GatewayAway("No engine of the gateway has said yet which base it serves. `loragate status` says why.")
        machine = await asyncio.to_thread(self._around.machine)
        rank = int(status["max_lora_rank"])
        return await asyncio.to_thread(Facts.look, str(base), Path(root), rank, machine)

    def _locate(self, name: str) -> Path:
        return self._around.places.files / name if FILE_ID.fullmatch(name) else Path(name)


def _is_here(address: Address) -> bool:
    """Whether the gateway is on this machine, and its engine with it."""
    return is_loopback(urlsplit(address.admin_url).hostname)


def trainer_environment(
    python: Path, folder: Path, recipe: Recipe, settled: Settled, outer: Mapping[str, str]
) -> dict[str, str]:
    """A child's, with the credentials of the trackers that the recipe names."""
    gpus = "all" if settled.gpus else ""  # which ones, the worker says
    made = Interpreter(python, gpus, beside_an_engine(gpus)).environment(folder)
    made |= {name: outer[name] for name in outer if recipe.report_to and name.startswith(TRACKERS)}
    if settled.deepspeed is not None or settled.gpus > 1:
        made["FORCE_TORCHRUN"] = "1"
    return made


def _enough(prepared: Prepared) -> None:
    """What OpenAI's service asks of a file, in its own words."""
    rows = sum(report.rows_kept for report in prepared.reports)
    if rows < LEAST_EXAMPLES:
        raise TooFewExamples(
            f"Training file has {rows} example(s), but must have at least {LEAST_EXAMPLES} examples",
            param="training_file",
        )


async def _told(prepared: Prepared, tell: Tell) -> None:
    """What was found in the data and decided for the run, as events."""
    settled = prepared.settled
    for report in prepared.reports:
        await tell(
            f"{report.name}: {report.rows_kept:,} of {report.rows_in:,} rows can be trained on",
            data={"counts": dict(report.counts)},
        )
        grave = [each for each in report.findings if each.level != "info"]
        for each in grave[:TOLD]:
            where = f"row {each.row}: " if each.row is not None else ""
            await tell(f"{report.name}, {where}{each.message}", level="warn")
    await tell(
        f"Planned: {settled.rows:,} rows, {settled.tokens:,} tokens, {settled.steps:,} steps, "
        f"{settled.memory_gb:.1f} GB of memory",
        data={"notes": list(settled.notes)},
    )
