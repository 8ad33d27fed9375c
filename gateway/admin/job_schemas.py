"""The JSON of /admin/v1/jobs, both ways. Must not know services."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from gateway.admin.schemas import JOB_ID, Strict
from training.service import MAX_PRIORITY
from training.types import JobState


class JobCreate(Strict):
    recipe: dict[str, Any] = Field(description="a recipe, as configs/recipes has them")
    priority: int = Field(0, strict=True, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="larger is sooner")


class JobPaging(Strict):
    after: str | None = Field(None, pattern=JOB_ID, description="id of the last job already seen")
    limit: int = Field(100, ge=1, le=1000)
    state: list[JobState] = Field([], max_length=16, description="only jobs in these states; repeatable")


class CancelChosen(Strict):
    keep: bool = Field(False, strict=True, description="leave what was trained so far in the job's folder")


class PriorityChosen(Strict):
    priority: int = Field(strict=True, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="larger is sooner")


class EventPaging(Strict):
    after: int = Field(0, ge=0, le=2**53, description="id of the last event already seen")
    limit: int = Field(100, ge=1, le=1000)
    stream: bool = Field(False, description="as server-sent events, until the job has ended")


class LogAsked(Strict):
    bytes: int = Field(16 * 1024, ge=1, le=1024 * 1024, description="at most so many")
    offset: int | None = Field(None, ge=0, le=2**53, description="where to begin; left out: the end of the log")


class JobView(BaseModel):
    id: str
    name: str
    owner: str | None
    state: str
    phase: str | None
    wish: str | None
    priority: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    attempts: int
    worker: str | None
    seen_at: int | None
    progress: dict[str, Any] | None
    outcome: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    recipe: dict[str, Any]
    settled: dict[str, Any] | None


class JobEventView(BaseModel):
    id: int
    at: int
    level: str
    kind: str
    message: str
    data: dict[str, Any] | None


class CheckpointView(BaseModel):
    step: int
    at: int
    folder: str
    metrics: dict[str, Any]
    version: str | None


class LogView(BaseModel):
    text: str
    offset: int
    next_offset: int
    size_bytes: int
