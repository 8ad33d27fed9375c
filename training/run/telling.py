"""What a run has to say while it trains, turn by turn: figures, findings, checkpoints, the picture of its curve.

Reads what the trainer writes and puts it into the database in one transaction a turn, a bounded number of lines over
the whole run. Must not know processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters.errors import ServiceError
from training import store_jobs as store
from training.run import curve as drawing
from training.run import gpu
from training.run.checkpoints import STATE, Found, look, present
from training.run.findings import Finding, Findings
from training.run.progress import FILE, Curve, LogReader, Point, Rate, finite, point
from training.run.record import Record
from training.types import Checkpoint, Job, Progress

LINES = 1500  # figures of training told at most over a run
VALID_LINES = 500  # and of validation
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two looks at the trainer, two writes of progress, two questions to nvidia-smi, two pictures.

    picture_s: infinite for none.
    """

    look_s: float = 0.5
    progress_s: float = 1.0
    picture_s: float = 30.0
    gpu_s: float = 10.0


class Telling:
    """One start of one run. Made by `open`; `turn` as often as one likes, `last` once it has ended."""

    def __init__(
        self,
        record: Record,
        job: Job,
        output: Path,
        picture: Path,
        pace: Pace,
        told: tuple[int, Iterable[str], Iterable[int]],
        rate: Rate,
        device: str,
    ) -> None:
        self._record = record
        self._job = job
        self._output = output
        self._picture = picture
        self._pace = pace
        self._rate = rate
        self._device = device
        self._reader = LogReader(output / FILE)
        self._curve = Curve()
        self._told, findings, checkpoints = told
        self._told_valid = self._told
        self._findings = Findings(frozenset(findings))
        self._known = set(checkpoints)
        self._bad: dict[int, float] = {}
        self._state_read = 0.0
        self._progress = job.progress
        self._newest: Point | None = None
        self._gpu: gpu.Gpu | None = None
        self._due = dict.fromkeys(("progress", "picture", "gpu"), float("-inf"))
        self._drawn: int | None = None

    @classmethod
    async def open(
        cls, record: Record, job: Job, output: Path, picture: Path, pace: Pace, from_step: int, device: str
    ) -> Telling:
        """With what was told before, by an earlier start or an earlier worker."""

        def read(conn: sa.Connection) -> tuple[int, frozenset[str], tuple[int, ...]]:
            steps = tuple(each.step for each in store.list_checkpoints(conn, job.id))
            return store.told_steps(conn, job.id), store.told_findings(conn, job.id), steps

        job = await record.job(job.id)
        rate = Rate(from_step, _step_s(job.progress))
        return cls(record, job, output, picture, pace, await record.read(read), rate, device)

    @property
    def step(self) -> int | None:
        """The last step that was seen."""
        return self._newest.step if self._newest is not None else None

    @property
    def step_s(self) -> float | None:
        """Seconds a step."""
        return self._rate.step_s

    async def turn(self) -> None:
        """Read what is new, and say it."""
        await self._turn(last=False)

    async def last(self) -> None:
        """The same once the trainer has ended: everything that is left, and the whole picture."""
        await self._turn(last=True)

    async def _turn(self, *, last: bool) -> None:
        now = asyncio.get_running_loop().time()
        points, found, gone = await asyncio.to_thread(self._look, last)
        for each in points:
            self._rate.see(now, each)
        if self._device and (last or self._is_due("gpu", now, self._pace.gpu_s)):
            self._gpu = gpu.of(self._device, await asyncio.to_thread(gpu.look))
        writes = [*self._figures(points), *self._checkpoints(found, gone)]
        if points:
            self._newest = points[-1]
            findings = self._findings.look(self._curve, self._newest.step, self._newest.steps)
            writes += [self._finding(each) for each in findings]
        if self._newest is not None and (last or self._is_due("progress", now, self._pace.progress_s)):
            progress = self._figured(self._newest)
            if progress != self._progress:
                self._progress = progress
                writes.append(lambda conn: store.change(conn, self._job.id, progress=progress))
        if writes:
            await self._record.write(lambda conn: _all(conn, writes))
        fresh = self._newest is not None and self._drawn != self._newest.step and math.isfinite(self._pace.picture_s)
        if fresh and (last or self._is_due("picture", now, self._pace.picture_s)):
            self._drawn = self.step
            await asyncio.to_thread(self._draw)

    def _look(self, last: bool) -> tuple[list[Point], list[Found], set[int]]:
        """Files, on a thread: new points, new whole checkpoints, checkpoints that are gone."""
        points = [self._curve.add(read) for record in self._reader.new() if (read := point(record)) is not None]
        there = present(self._output)
        found = []
        for step in sorted(set(there) - self._known):
            folder = there[step]
            try:
                written = (folder / STATE).stat().st_mtime  # the last thing that is written
            except OSError:
                continue
            if self._bad.get(step) == written and not last:
                continue
            whole = look(folder)
            if isinstance(whole, Found):
                found.append(whole)
                self._learn(folder / STATE)
            else:
                self._bad[step] = written
        if last:
            self._learn(self._output / STATE)
        return points, found, self._known - set(there)

    def _learn(self, state: Path) -> None:
        try:
            self._curve.learn(json.loads(state.read_text(encoding="utf-8")).get("log_history") or ())
        except (OSError, ValueError, AttributeError):
            return

    def _figures(self, points: list[Point]) -> list[Callable[[sa.Connection], Any]]:
        """The lines that are due: not twice for a step, and not more than LINES over the whole run."""
        writes: list[Callable[[sa.Connection], Any]] = []
        for each in points:
            stride = (each.steps or 0) / LINES
            due = each.loss is not None and each.step > self._told and each.step - self._told >= stride
            stride = (each.steps or 0) / VALID_LINES
            since = each.step - self._told_valid
            valid = each.valid_loss is not None and since > 0 and since >= stride
            if due or valid:
                writes.append(self._line(each))
                self._told = max(self._told, each.step)
                self._told_valid = each.step if valid else self._told_valid
        return writes

    def _line(self, each: Point) -> Callable[[sa.Connection], None]:
        said = [("training loss", each.loss), ("validation loss", each.valid_loss)]
        words = ", ".join(f"{name}={value:.4g}" for name, value in said if value is not None)
        message = f"Step {each.step}/{each.steps}: {words}"
        figures = {
            "train_loss": each.loss,
            "valid_loss": each.valid_loss,
            "learning_rate": each.learning_rate,
            "epoch": each.epoch,
            "grad_norm": each.grad_norm,
            "reward_accuracy": each.accuracy,
            "tokens_per_s": self._rate.tokens_per_s,
            "eta_s": self._rate.left_s(each),
            "gpu_memory_gb": self._gpu.used_gb if self._gpu else None,
            "gpu_busy_percent": self._gpu.busy if self._gpu else None,
        }
        data: dict[str, Any] = {"step": each.step, "total_steps": each.steps}
        data |= {name: _short(value) for name, value in figures.items() if finite(value) is not None}
        now = self._record.clock()
        return lambda conn: store.tell(conn, self._job.id, now, message, kind="metrics", data=data)

    def _finding(self, finding: Finding) -> Callable[[sa.Connection], None]:
        now = self._record.clock()
        return lambda conn: store.tell(
            conn, self._job.id, now, finding.message, level=finding.level, data={"finding": finding.kind}
        )

    def _checkpoints(self, found: list[Found], gone: set[int]) -> list[Callable[[sa.Connection], Any]]:
        writes: list[Callable[[sa.Connection], Any]] = []
        for each in found:
            made = Checkpoint(self._job.id, each.step, self._record.clock(), str(each.folder), self._metrics(each))
            writes.append(partial(store.keep_checkpoint, made=made))
        writes += [partial(store.forget_checkpoint, job_id=self._job.id, step=step) for step in gone]
        self._known = (self._known | {each.step for each in found}) - gone
        return writes

    def _metrics(self, found: Found) -> dict[str, Any]:
        names = {
            "train_loss": "loss",
            "valid_loss": "eval_loss",
            "valid_mean_token_accuracy": "eval_accuracy",
            "learning_rate": "learning_rate",
            "grad_norm": "grad_norm",
            "epoch": "epoch",
        }
        figures = {ours: finite(found.figures.get(theirs)) for ours, theirs in names.items()}
        return {"step": found.step, **{name: value for name, value in figures.items() if value is not None}}

    def _figured(self, newest: Point) -> Progress:
        points = self._curve.points()

        def last(name: str) -> float | None:
            return next((finite(v) for p in reversed(points[-200:]) if (v := getattr(p, name)) is not None), None)

        memory = newest.memory_gb if newest.memory_gb is not None else (self._gpu.used_gb if self._gpu else None)
        left = self._rate.left_s(newest)
        return Progress(
            step=newest.step,
            steps=newest.steps,
            epoch=finite(newest.epoch),
            loss=last("loss"),
            valid_loss=last("valid_loss"),
            learning_rate=last("learning_rate"),
            grad_norm=last("grad_norm"),
            tokens_per_s=_short(self._rate.tokens_per_s),
            eta_s=round(left, 1) if left is not None else None,
            memory_gb=finite(memory),
            trained_tokens=newest.tokens,
        )

    def _draw(self) -> None:
        try:
            drawing.picture(self._picture, self._curve.losses(), self._curve.valid_losses(), self._job.name)
        except (ServiceError, OSError) as exc:  # a picture is not worth a run
            _log.warning("no picture of %s: %s", self._job.id, exc)

    def _is_due(self, what: str, now: float, every_s: float) -> bool:
        if now - self._due[what] < every_s:
            return False
        self._due[what] = now
        return True


def _all(conn: sa.Connection, writes: list[Callable[[sa.Connection], Any]]) -> None:
    for write in writes:
        write(conn)


def _short(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None else None


def _step_s(progress: Progress | None) -> float | None:
    """Seconds a step as the last start knew them."""
    if progress is None or progress.eta_s is None or progress.steps is None or progress.step >= progress.steps:
        return None
    return progress.eta_s / (progress.steps - progress.step)
