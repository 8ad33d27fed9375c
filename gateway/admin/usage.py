"""/admin/v1/usage: requests and tokens per key, model and UTC day."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from gateway.admin.access import admin
from gateway.admin.schemas import Listed, UsagePaging, UsageView
from gateway.usage import UsageQuery, UsageRow, UsageService


class UsageRoutes:
    def __init__(self, usage: UsageService) -> None:
        self._usage = usage

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1/usage", dependencies=[Depends(admin)], tags=["usage"])
        router.add_api_route("", self.query, methods=["GET"])
        return router

    async def query(self, asked: Annotated[UsagePaging, Query()]) -> Listed[UsageView]:
        """What was used, the last second included."""
        query = UsageQuery(
            since=asked.since.isoformat() if asked.since else None,
            until=asked.until.isoformat() if asked.until else None,
            key=asked.key,
            model=asked.model,
            group_by=tuple(name for name in asked.group_by.split(",") if name != "none"),
        )
        page = await self._usage.query(query, skip=asked.after, limit=asked.limit)
        return Listed[UsageView](data=[_view(row) for row in page.items], has_more=page.has_more)


def _view(row: UsageRow) -> UsageView:
    return UsageView(
        key=row.key,
        model=row.model,
        day=row.day,
        requests=row.requests,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        total_tokens=row.prompt_tokens + row.completion_tokens,
    )
