"""The nouns of this room as frozen values: jobs, their events and checkpoints, uploaded files.

Must not know SQL, HTTP, or how anything is trained. Times are unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job is. The last three are for ever."""

    VALIDATING = "validating"  # waits for, or is in, the check of its data and its plan
    QUEUED = "queued"  # may run as soon as there is room
    RUNNING = "running"  # `phase` says what it does
    PAUSED = "paused"  # stopped at a whole checkpoint, until somebody says resume
    SUCCEEDED = "succeeded"  # every step was trained; `outcome` says what became of the adapter
    FAILED = "failed"  # `error` says why
    CANCELLED = "cancelled"


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Phase(StrEnum):
    """What a running job does, in this order."""

    PREPARING = "preparing"  # files and settings of the run
    TRAINING = "training"
    REGISTERING = "registering"  # the adapter becomes a version, which no public name points at yet
    EVALUATING = "evaluating"  # through the engine that serves, against the base and the live version
    PUTTING_LIVE = "putting live"  # promoted, or a canary begun


class Wish(StrEnum):
    """What somebody asked of a job that runs; its worker obeys, and takes the wish away."""

    CANCEL = "cancel"  # what was trained so far is thrown away
    CANCEL_AND_KEEP = "cancel and keep"  # it stays in the job's folder, and is registered by nobody
    PAUSE = "pause"


class Outcome(StrEnum):
    """What became of the adapter of a job that has ended."""

    PROMOTED = "promoted"
    CANARY = "canary"
    REGISTERED = "registered"  # a version that only `name@version` asks for: nobody wanted more
    REJECTED = "rejected"  # the same, because the evaluation gate said no
    KEPT = "kept"  # in the job's folder: the recipe asked for no more, or it is a model of its own
    PARTIAL = "partial"  # stopped early or cancelled; in the job's folder only
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a job failed. `try_this`: settings of the recipe that may help, by their dotted names."""

    code: str
    message: str
    param: str | None = None
    try_this: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest figures of a run. None: not said (yet)."""

    step: int = 0
    steps: int | None = None  # of the whole run
    epoch: float | None = None
    loss: float | None = None
    valid_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None  # until training ends
    memory_gb: float | None = None  # of the GPU, as the trainer says
    trained_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One run from its request to what became of the adapter.

    recipe: as asked (training/recipe.py); request: what came through /v1/fine_tuning/jobs, to be echoed; settled: the
    plan with every `auto` decided; result: see training/worker.py.
    """

    id: str  # ftjob-…
    owner: str | None  # id of the key that made it; None: an operator's
    name: str  # public name of the adapter to be
    state: JobState
    recipe: Mapping[str, Any]
    created_at: float
    priority: int = 0  # larger is sooner
    phase: Phase | None = None
    wish: Wish | None = None
    request: Mapping[str, Any] | None = None
    settled: Mapping[str, Any] | None = None
    progress: Progress | None = None
    outcome: Outcome | None = None
    result: Mapping[str, Any] | None = None
    error: Problem | None = None
    worker: str | None = None
    seen_at: float | None = None  # when its worker last said that it is there
    attempts: int = 0  # how often the trainer was started for it
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of what happened to a job. Ids grow: whoever knows one may ask for what came after."""

    id: int
    job: str
    at: float
    level: str  # info, warn, error
    kind: str  # message, or metrics: then `data` holds figures
    message: str
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run had learned at one step, whole on disk. `version`: 12 hex digits once it can be asked."""

    job: str
    step: int
    at: float
    folder: str
    metrics: Mapping[str, Any]
    version: str | None = None


class FileStatus(StrEnum):
    UPLOADED = "uploaded"
    PROCESSED = "processed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded (or written) file; its bytes lie in the data directory under its id."""

    id: str  # file-…
    owner: str | None
    purpose: str
    filename: str
    bytes: int
    digest: str  # sha256, 64 hex digits
    status: FileStatus
    created_at: float
    details: str | None = None
    expires_at: float | None = None
