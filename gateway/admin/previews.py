"""/admin/v1/jobs/{job}/previews: checkpoints of a job that has not ended, to be asked through the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from fastapi import Path as InPath
from pydantic import BaseModel, Field

from gateway.admin.access import Admin, admin, who
from gateway.admin.schemas import JOB_ID, Listed, Strict
from training.previews import Preview, Previews

Id = Annotated[str, InPath(pattern=JOB_ID)]


class PreviewChosen(Strict):
    step: int | None = Field(None, ge=1, le=2**53, description="of the checkpoint; left out: the newest whole one")


class PreviewView(BaseModel):
    job: str
    step: int
    model: str = Field(description="what a request asks for")
    name: str
    version: str
    created_at: int
    chat_template_kwargs: dict[str, Any] = Field(description="what every request to it needs")


class PreviewRoutes:
    """within_reach: refuses a job that the caller may not see."""

    def __init__(self, previews: Previews, within_reach: Callable[..., Awaitable[None]]) -> None:
        self._previews = previews
        self._within_reach = within_reach

    def router(self) -> APIRouter:
        own = [Depends(admin), Depends(self._within_reach)]
        router = APIRouter(prefix="/admin/v1/jobs/{job}/previews", dependencies=own, tags=["jobs"])
        router.add_api_route("", self.serve, methods=["POST"], status_code=201)
        router.add_api_route("", self.list, methods=["GET"])
        router.add_api_route("", self.end, methods=["DELETE"])
        return router

    async def serve(
        self, job: Id, caller: Admin, body: Annotated[PreviewChosen, Body(default_factory=PreviewChosen)]
    ) -> PreviewView:
        """Let a whole checkpoint of a job that has not ended be asked, until the job ends or DELETE."""
        return _view(await self._previews.serve(job, body.step, by=who(caller)))

    async def list(self, job: Id) -> Listed[PreviewView]:
        """The checkpoints of a job that can be asked now, the newest first."""
        return Listed[PreviewView](data=[_view(each) for each in await self._previews.list(job)], has_more=False)

    async def end(self, job: Id, caller: Admin) -> Listed[PreviewView]:
        """None of them can be asked any more; which they were. The job goes on."""
        gone = await self._previews.end(job, by=who(caller))
        return Listed[PreviewView](data=[_view(each) for each in gone], has_more=False)


def _view(preview: Preview) -> PreviewView:
    return PreviewView(
        job=preview.job,
        step=preview.step,
        model=preview.model,
        name=preview.name,
        version=preview.version,
        created_at=int(preview.created_at),
        chat_template_kwargs=dict(preview.chat_template_kwargs),
    )
