"""What /metrics shows of training: how many jobs are in which state, and the newest figures of those that run.

Read from the database every few seconds, never at a scrape. Must not change anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType

from adapters.errors import ServiceError
from gateway.metrics import Metrics
from training.service import JobService
from training.types import Job, JobState

EVERY_S = 5.0
RUNS = 50  # at most so many runs have figures of their own
_log = logging.getLogger(__name__)


class Trainings:
    """Fills the training figures of `metrics` while it is open."""

    def __init__(self, jobs: JobService, metrics: Metrics, *, every_s: float = EVERY_S) -> None:
        self._jobs = jobs
        self._every_s = every_s
        self._states: dict[str, int] = {}
        self._runs: list[tuple[str, Mapping[str, float]]] = []
        self._task: asyncio.Task[None] | None = None
        metrics.training_jobs = lambda: self._states
        metrics.training_runs = lambda: self._runs

    async def __aenter__(self) -> Trainings:
        await self.read()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def read(self) -> None:
        """Once."""
        counts = await self._jobs.counts()
        self._states = {state.value: counts.get(state.value, 0) for state in JobState}
        runs: list[tuple[str, Mapping[str, float]]] = []
        if self._states[JobState.RUNNING.value]:
            page = await self._jobs.list(owner=None, after=None, limit=RUNS, states=(JobState.RUNNING,))
            runs = [(job.id, figures) for job in page.jobs if (figures := _figures(job))]
        self._runs = runs

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.read()
            except ServiceError as exc:  # the next look may find it again; until then the last figures stand
                _log.warning("training figures cannot be read: %s", exc.message)


def _figures(job: Job) -> dict[str, float]:
    """What is known of one run, by the metric's last words."""
    told = job.progress
    if told is None:
        return {}
    known = {
        "progress_ratio": told.step / told.steps if told.steps else None,
        "loss": told.loss,
        "validation_loss": told.valid_loss,
        "tokens_per_second": told.tokens_per_s,
        "left_seconds": told.eta_s,
    }
    return {name: value for name, value in known.items() if value is not None}
