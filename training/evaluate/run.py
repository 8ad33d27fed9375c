"""One whole evaluation: who is compared, what is asked, and in which order.

Must not know gate rules, jobs, or where reports lie.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from training.data.row import Row
from training.errors import GatewayAway
from training.evaluate import measure
from training.evaluate.asking import Manner, room_for
from training.evaluate.bertscore import BertScore
from training.evaluate.evaluation import BASE, CANDIDATE, LIVE, OTHERS, Evaluation, Line, compare
from training.evaluate.example import Sample, Skipped, sample
from training.evaluate.forgetting import Forgetting, forgetting
from training.evaluate.general import General
from training.evaluate.interval import CONFIDENCE, RESAMPLES
from training.evaluate.judge import Judge
from training.evaluate.overlap import Overlap
from training.gatewayclient import Gateway

MAX_ROWS = 500
SEED = 42
LIBRARIES = ("loragate", "numpy", "sacrebleu", "rouge-score")

OnProgress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def unseen(what: str, done: int, of: int) -> None:
    """For whoever shows no progress."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be evaluated. live: version that answers now, 12 digits; None: none does, or it is the candidate.

    guarded: rows that must not get worse; general: None measures no forgetting; data: what the report says of rows.
    """

    name: str
    version: str
    base: str
    live: str | None = None
    rows: Iterable[Row] = ()
    guarded: Iterable[Row] | None = None
    general: General | None = None
    max_rows: int = MAX_ROWS
    seed: int = SEED
    at_once: int = 8
    kwargs: Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> dict[str, str]:
        """Arm → model name as it is asked."""
        found = {CANDIDATE: f"{self.name}@{self.version}"}
        if self.live is not None and self.live != self.version:
            found[LIVE] = f"{self.name}@{self.live}"
        return {**found, BASE: self.base}


async def evaluate(
    gateway: Gateway,
    asked: Ask,
    *,
    judge: Judge | None = None,
    bertscore: BertScore | None = None,
    on_progress: OnProgress = unseen,
) -> Evaluation:
    """Everything that is known of the candidate afterwards.

    GatewayAway, GatewayRefused, ExtraMissing; with `bertscore` ChildFailed.
    """
    status = await gateway.status()
    drawn = sample(asked.rows, most=asked.max_rows, seed=asked.seed)
    guards = sample(asked.guarded, most=10**9, seed=asked.seed) if asked.guarded is not None else None
    both = [*drawn.examples, *(guards.examples if guards is not None else ())]
    manner = Manner(room_for(both), asked.at_once, asked.kwargs)
    notes = []
    lines, failed, said = await _lines(gateway, asked, drawn, manner, "held-out rows", on_progress)
    notes += said
    kept: tuple[Line, ...] | None = None
    kept_failed: tuple[Skipped, ...] = ()
    if guards is not None:
        kept, kept_failed, said = await _lines(gateway, asked, guards, manner, "rows to keep", on_progress)
        kept_failed += guards.skipped
        notes += [f"Of the rows that must not get worse: {note}" for note in said]
    if bertscore is not None:
        on_progress("comparing meanings", 0, len(lines))
        lines = await measure.with_bertscore(bertscore, lines)
        kept = await measure.with_bertscore(bertscore, kept) if kept is not None else None
        on_progress("comparing meanings", len(lines), len(lines))
        notes.append(f"BERTScore is of {bertscore.model.name}, not rescaled: only differences say something.")
    if judge is not None:
        total = len(lines)
        lines, counts = await measure.with_judge(
            judge, lines, asked.at_once, lambda done: on_progress("judging", done, total)
        )
        notes += _judged(counts, judge)
    forgotten = await _forgotten(gateway, asked, manner, on_progress)
    notes += _truncated(lines)
    overlap = Overlap()
    return Evaluation(
        models=asked.arms,
        lines=lines,
        differences=compare(lines, [arm for arm in OTHERS if arm in asked.arms], seed=asked.seed),
        corpus={
            arm: overlap.corpus((line.answers[arm].text, line.example.reference) for line in lines)
            for arm in asked.arms
        }
        if lines
        else {},
        rows=drawn.rows,
        left_out=drawn.left_out,
        skipped=drawn.skipped,
        failed=failed,
        guarded=kept,
        guarded_failed=kept_failed,
        forgetting=forgotten,
        notes=tuple(notes),
        about={**_about(asked, drawn, manner, lines, judge), "gateway": _gateway(status)},
    )


async def live_version(gateway: Gateway, name: str) -> str | None:
    """The version that answers as `name` now, if any."""
    found = await gateway.adapter(name)
    return None if found is None else found["live"]


async def base_model(gateway: Gateway) -> str:
    """What the gateway serves; GatewayAway where no engine has told it yet."""
    base = (await gateway.status()).get("base")
    if not base:
        raise GatewayAway("The gateway does not know its base model yet: no engine is ready. Wait for /readyz.")
    return str(base)


async def _lines(
    gateway: Gateway, asked: Ask, drawn: Sample, manner: Manner, what: str, on_progress: OnProgress
) -> tuple[tuple[Line, ...], tuple[Skipped, ...], list[str]]:
    arms, examples = asked.arms, drawn.examples
    total = len(examples) * len(arms)
    lines, failed = await measure.answers(
        gateway, arms, examples, manner, lambda done: on_progress(f"asking the {what}", done, total)
    )
    lines, missing = await measure.with_likelihood(
        gateway, arms, lines, manner, lambda done: on_progress(f"likelihood of the {what}", done, len(lines))
    )
    return lines, failed, [missing] if missing is not None else []


async def _forgotten(gateway: Gateway, asked: Ask, manner: Manner, on_progress: OnProgress) -> Forgetting | str | None:
    if asked.general is None:
        return None
    total = len(asked.general.pieces)
    return await forgetting(
        gateway,
        asked.arms,
        asked.general,
        manner,
        seed=asked.seed,
        done=lambda done: on_progress("general set", done, total),
    )


def _judged(counts: measure.Judged, judge: Judge) -> list[str]:
    if not counts.swayed and not counts.failed:
        return []
    return [
        f"Of {counts.pairs} pairs, the verdict of the judge {judge.model} depended on the order of the answers in "
        f"{counts.swayed} (counted as ties), and it gave none in {counts.failed} (left out)."
    ]


def _truncated(lines: tuple[Line, ...]) -> list[str]:
    cut = sum(line.answers[CANDIDATE].finish == "length" for line in lines)
    return [f"{cut} of {len(lines)} answers of the candidate were cut off at max_tokens."] if cut else []


def _about(asked: Ask, drawn: Sample, manner: Manner, lines: tuple[Line, ...], judge: Judge | None) -> dict[str, Any]:
    engines = {answer.engine for line in lines for answer in line.answers.values() if answer.engine}
    return {
        "data": dict(asked.data),
        "examples_sha256": drawn.digest,
        "seed": asked.seed,
        "max_rows": asked.max_rows,
        "asked": manner.document(),
        "interval": {
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "method": "paired bootstrap, expanded percentile",
        },
        "engines": sorted(engines),
        "judge": judge.model if judge is not None else None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
    }


def _gateway(status: Mapping[str, Any]) -> dict[str, Any]:
    """Whose answers these are: the gateway's version, and the engines that it had."""
    engines = [{"url": each.get("url"), "model": each.get("model")} for each in status.get("replicas", ())]
    return {"version": status.get("version"), "base": status.get("base"), "engines": engines}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
