"""/admin/v1/feedback: what callers said about answers, to be read, exported and forgotten."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field

from adapters.errors import InvalidRequest
from gateway.admin.access import admin
from gateway.admin.schemas import Listed, Strict
from training.feedback import FeedbackService
from training.store_feedback import Feedback, Wanted

Id = Annotated[str, Path(pattern=r"^fb-[0-9]{1,9}$")]


class FeedbackFilter(Strict):
    model: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", description="a public name")
    version: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")
    key: str | None = Field(None, pattern=r"^[A-Za-z0-9]{1,64}$", description="id of the key that sent it")
    user: str | None = Field(None, max_length=256, description="what the caller gave as `user`")

    def wanted(self) -> Wanted:
        return Wanted(model=self.model, version=self.version, owner=self.key, user=self.user)


class FeedbackPaging(FeedbackFilter):
    after: str | None = Field(None, pattern=r"^fb-[0-9]{1,9}$", description="id of the last item already seen")
    limit: int = Field(100, ge=1, le=200)


class FeedbackView(BaseModel):
    """`messages` is the conversation before the answer; what was not given is null."""

    id: str
    created_at: int
    key: str | None = Field(description="id of the key that sent it")
    model: str
    version: str | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    answer: str | None
    correction: str | None
    rating: str | None
    note: str | None
    user: str | None


class RemovedFeedback(BaseModel):
    removed: int


class FeedbackRoutes:
    def __init__(self, feedback: FeedbackService) -> None:
        self._feedback = feedback

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1/feedback", dependencies=[Depends(admin)], tags=["feedback"])
        router.add_api_route("", self.list, methods=["GET"])
        router.add_api_route("", self.clear, methods=["DELETE"])
        router.add_api_route("/{feedback_id}", self.remove, methods=["DELETE"])
        return router

    async def list(self, asked: Annotated[FeedbackPaging, Query()]) -> Listed[FeedbackView]:
        """What callers said, oldest first."""
        after = _number(asked.after) if asked.after else 0
        found, has_more = await self._feedback.page(asked.wanted(), after, asked.limit)
        return Listed[FeedbackView](data=[_view(each) for each in found], has_more=has_more)

    async def clear(self, asked: Annotated[FeedbackFilter, Query()]) -> RemovedFeedback:
        """Forget all that is named: of a model, a version, a key, a user."""
        if asked.wanted() == Wanted():
            raise InvalidRequest("Say which feedback: give `model`, `version`, `key` or `user`.")
        return RemovedFeedback(removed=await self._feedback.clear(asked.wanted()))

    async def remove(self, feedback_id: Id) -> RemovedFeedback:
        """Forget one."""
        await self._feedback.remove(_number(feedback_id))
        return RemovedFeedback(removed=1)


def _number(feedback_id: str) -> int:
    return int(feedback_id.removeprefix("fb-"))


def _view(each: Feedback) -> FeedbackView:
    said = ("messages", "tools", "answer", "correction", "rating", "note", "user")
    return FeedbackView(
        id=f"fb-{each.id}",
        created_at=int(each.at),
        key=each.owner,
        model=each.model,
        version=each.version,
        **{name: each.body.get(name) for name in said},
    )
