"""/admin/v1/render: the tokens that a conversation is to the engine, for whoever trains on the same.

Must not know templates: the engine's own is asked.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends

from adapters.service import AdapterService
from gateway.admin.access import admin
from gateway.admin.schemas import RenderedView, Rendering


class RenderRoutes:
    def __init__(self, adapters: AdapterService) -> None:
        self._adapters = adapters

    def router(self) -> APIRouter:
        router = APIRouter(dependencies=[Depends(admin)], tags=["adapters"])
        router.add_api_route("/admin/v1/render", self.render, methods=["POST"])
        return router

    async def render(self, body: Rendering) -> RenderedView:
        """The prompt that the base would see, as token ids; nothing is generated."""
        found = await self._adapters.render(body.messages, body.tools, body.chat_template_kwargs)
        return RenderedView(tokens=list(found))
