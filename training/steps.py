"""What a worker does for a job, as it sees it: check, launch, finish. What these are made of is training/pipeline.py's.

Must not know queues, processes or states.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.types import Job, Outcome, Phase


class Tell(Protocol):
    """Adds an event to the job."""

    def __call__(
        self, message: str, *, level: str = "info", kind: str = "message", data: Mapping[str, Any] | None = None
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Launch:
    """How the trainer of one job is started: a program and its words, never a shell.

    output: the folder that it writes progress and checkpoints into; steps: how many it will do, None where only the
    trainer knows.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    output: Path
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of the adapter."""

    outcome: Outcome
    result: Mapping[str, Any]


class Steps(Protocol):
    async def check(self, job: Job, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """Data and plan, before any compute is spent; what was settled. InvalidRequest refuses the job."""

    def launch(self, job: Job, folder: Path) -> Launch:
        """The run of a checked job; the same again to go on from its newest checkpoint. Unavailable: asked again."""

    async def paused(self, job: Job) -> bool:
        """Whether the engine beside stands still, and the recipe agrees to that: then what is free now is borrowed.

        Unavailable while it comes back, or stands still for another run and the recipe does not agree: it is not
        known then what it will leave free.
        """

    async def borrow(self, job: Job, seconds: float) -> bool:
        """Have the engine beside stopped for so long, unless this is said again; False where the recipe does not agree.

        Unavailable; any other ServiceError where it cannot be stopped.
        """

    async def give_back(self, job: Job) -> None:
        """The engine may start again. ServiceError."""

    async def finish(self, job: Job, folder: Path, tell: Tell, phase: Callable[[Phase], Awaitable[None]]) -> Finished:
        """A whole run became an adapter: register, evaluate, put live. May be begun again after a crash."""
