"""/admin/v1/status for operators; /livez, /readyz and /metrics for machines, without a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from gateway.admin.access import admin, public

TEXT = "text/plain; version=1.0.0; charset=utf-8"  # Prometheus' exposition format


class StatusRoutes:
    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        ready: Callable[[], tuple[bool, dict[str, Any]]],
        metrics: Callable[[], bytes],
    ) -> None:
        self._status = status
        self._ready = ready
        self._metrics = metrics

    def router(self) -> APIRouter:
        router = APIRouter(tags=["status"])
        router.add_api_route("/admin/v1/status", self.status, methods=["GET"], dependencies=[Depends(admin)])
        router.add_api_route("/livez", self.livez, methods=["GET"], dependencies=[Depends(public)])
        router.add_api_route("/readyz", self.readyz, methods=["GET"], dependencies=[Depends(public)])
        router.routes.extend(metrics_router(self._metrics).routes)
        return router

    async def status(self) -> JSONResponse:
        """Engines, adapters, keys and limits at a glance."""
        return JSONResponse(self._status())

    async def livez(self) -> JSONResponse:
        """200 while the process can answer at all."""
        return JSONResponse({"alive": True})

    async def readyz(self) -> JSONResponse:
        """200 only when a request would succeed; else 503 and the reasons."""
        ready, body = self._ready()
        return JSONResponse(body, 200 if ready else 503)


def metrics_router(metrics: Callable[[], bytes]) -> APIRouter:
    """/metrics alone."""

    async def scrape() -> Response:
        """Prometheus metrics."""
        return Response(metrics(), media_type=TEXT)

    router = APIRouter(tags=["status"])
    router.add_api_route("/metrics", scrape, methods=["GET"], dependencies=[Depends(public)])
    return router
