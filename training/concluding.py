"""From a whole run to what becomes of its adapter: two files, a version, an evaluation, a verdict, callers.

Every step may be begun again: the same files are the same version. Must not know queues or processes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.http import open_http
from training.evaluate import report
from training.evaluate.bertscore import BertScore
from training.evaluate.evaluation import Evaluation
from training.evaluate.gate import Rules, Verdict, gate
from training.evaluate.general import load as general_set
from training.evaluate.judge import Judge, JudgeAt
from training.evaluate.run import Ask, evaluate
from training.gatewayclient import FILES, Gateway
from training.interpreter import Interpreter
from training.plan import Settled
from training.preparing import DATA, GUARDED, OUTPUT, TRAIN, VALID, rows_of
from training.recipe import Recipe
from training.steps import Finished, Tell
from training.types import Job, Outcome, Phase

ADAPTER, EVALUATION = "adapter", "evaluation"
SetPhase = Callable[[Phase], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is whole. lineage: how the adapter was made, kept with its version.

    trainer: the training environment, where it is there.
    """

    job: Job
    recipe: Recipe
    settled: Settled
    folder: Path
    lineage: Mapping[str, Any]
    trainer: Interpreter | None = None


def collect(run: Run) -> Path:
    """The adapter's two files, beside the run; the folder that has them."""
    return two_files(run.folder / OUTPUT / run.settled.adapter_folder, run.folder / ADAPTER)


def two_files(source: Path, target: Path) -> Path:
    """Copy an adapter as everybody may read it (trainers write weights 0600); `target`. OSError."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        fresh = target / f".{name}"
        shutil.copyfile(source / name, fresh)
        fresh.chmod(0o644)
        os.replace(fresh, target / name)
    return target


async def conclude(run: Run, gateway: Gateway, tell: Tell, phase: SetPhase) -> Finished:
    """Register, evaluate, put live; GatewayAway, AdapterRejected, and what else the gateway refuses."""
    await phase(Phase.REGISTERING)
    notes = f"Trained by {run.job.id}"
    version = await gateway.register(
        run.folder / ADAPTER, run.recipe.name, notes=notes, lineage=run.lineage, owner=run.job.owner
    )
    model = f"{run.recipe.name}@{version}"
    await tell(f"Registered as {model}")
    result: dict[str, Any] = {
        "version": version,
        "model": model,
        "public_name": run.recipe.name,
        "trained_tokens": run.settled.tokens,
        "adapter": str(run.folder / ADAPTER),
    }
    if run.recipe.gate is not None:
        await phase(Phase.EVALUATING)
        verdict, evaluation = await _judged(run, gateway, version, tell)
        result |= {"verdict": verdict.sentence, "evaluation": evaluation.summary()}
        await tell(verdict.sentence, level="info" if verdict.passed else "warn")
        if not verdict.passed:
            return Finished(Outcome.REJECTED, result)
    await phase(Phase.PUTTING_LIVE)
    return Finished(await _put_live(run, gateway, version, tell, str(result.get("verdict", notes))), result)


async def _judged(run: Run, gateway: Gateway, version: str, tell: Tell) -> tuple[Verdict, Evaluation]:
    given = run.recipe.gate
    assert given is not None  # noqa: S101  # asked only then; for the type
    known = await gateway.adapter(run.recipe.name)
    rows = rows_of(run.folder / DATA / f"{VALID}.jsonl")
    held_out = bool(rows)
    if not held_out:
        rows = rows_of(run.folder / DATA / f"{TRAIN}.jsonl")
        await tell(
            "The recipe holds no rows out, so it is measured on rows that it was trained on: that it learned them by "
            "heart can be seen, whether it learned more cannot. Set data.validation.",
            level="warn",
        )
    asked = Ask(
        name=run.recipe.name,
        version=version,
        base=run.settled.base,
        live=known["live"] if known is not None else None,
        rows=rows,
        guarded=rows_of(run.folder / DATA / f"{GUARDED}.jsonl") if given.no_regression_on is not None else None,
        general=general_set(),
        max_rows=given.max_rows,
        seed=run.recipe.training.seed,
        kwargs=run.settled.chat_template_kwargs or None,
        data={"job": run.job.id, "held_out": held_out},
    )
    rules = Rules.of(given.model_dump())
    encoder = given.bertscore
    alike = BertScore(run.trainer, Path(encoder.model), encoder.layer) if encoder and run.trainer else None
    judge = given.judge
    if judge is None:
        found = await evaluate(gateway, asked, bertscore=alike)
    else:
        at = JudgeAt(judge.url, judge.model, os.environ.get(judge.key_env, "") if judge.key_env else "")
        async with open_http() as http:
            found = await evaluate(gateway, asked, judge=Judge(http, at), bertscore=alike)
    verdict = gate(found, rules)
    report.write(found, rules, verdict, run.folder / EVALUATION)
    return verdict, found


async def _put_live(run: Run, gateway: Gateway, version: str, tell: Tell, why: str) -> Outcome:
    recipe = run.recipe
    percent = recipe.wants_canary
    if percent is None and recipe.then != "promote":
        return Outcome.REGISTERED
    if percent is not None:
        known = await gateway.adapter(recipe.name)
        if known is not None and known["live"] not in (None, version):
            await gateway.canary(recipe.name, version, percent, why=why[:1000])
            await tell(f"{recipe.name} is answered by {version} for {percent:g} % of the callers")
            return Outcome.CANARY
        await tell(f"{recipe.name} has no version that a canary could be compared with: it is promoted")
    await gateway.promote(recipe.name, version, why=why[:1000])
    await tell(f"{recipe.name} is answered by {version} now")
    return Outcome.PROMOTED


def kept(run: Run) -> Finished:
    """A model of its own, or what the recipe wants in the folder only."""
    where = run.folder / OUTPUT if run.settled.served != "adapter" else run.folder / ADAPTER
    return Finished(Outcome.KEPT, {"folder": str(where), "trained_tokens": run.settled.tokens})
