"""Where this room's files lie below the data directory. Names them only: nothing is made or read here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """The training part of one data directory."""

    data: Path

    @property
    def root(self) -> Path:
        return self.data / "training"

    @property
    def files(self) -> Path:
        """Uploaded files, each under its id."""
        return self.root / "files"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job(self, job_id: str) -> Path:
        """Everything of one job: data, settings, log, checkpoints, adapter, report."""
        return self.jobs / job_id

    def output(self, job_id: str) -> Path:
        """Checkpoints and the adapter, as the trainer writes them."""
        return self.job(job_id) / "out"

    @property
    def previews(self) -> Path:
        """Which checkpoints of jobs that have not ended can be asked, each in a file below its job's id."""
        return self.root / "previews"

    @property
    def worker_id(self) -> Path:
        """Who the worker of this data directory is, over all its starts."""
        return self.root / "worker.id"

    @property
    def worker_lock(self) -> Path:
        return self.data / "worker.lock"
