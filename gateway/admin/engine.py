"""/admin/v1/engine: stopped while a training run needs its GPU, for as long as the run's worker says so."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from gateway.admin.access import Admin, admin
from gateway.admin.schemas import JOB_ID, Strict
from gateway.errors import Forbidden
from gateway.keys import Key
from gateway.pausing import LONGEST_S, SHORTEST_S, Pauses


class PauseAsked(Strict):
    job: str = Field(pattern=JOB_ID, description="the run that needs the GPU")
    seconds: float = Field(ge=SHORTEST_S, le=LONGEST_S, description="until the engine comes back, unless asked again")


class PauseOver(Strict):
    job: str = Field(pattern=JOB_ID)


class PausesView(BaseModel):
    paused: bool
    jobs: list[str] = Field(description="the runs that need the GPU now")


def everything(caller: Admin) -> Key:
    """An engine answers for all models, so a key with a list of some may not stop it."""
    if caller.models is not None:
        raise Forbidden(
            "Your key may use some models only, and the engine answers for all.", param=None, retryable=False
        )
    return caller


class EngineRoutes:
    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses

    def router(self) -> APIRouter:
        router = APIRouter(
            prefix="/admin/v1/engine", dependencies=[Depends(admin), Depends(everything)], tags=["engine"]
        )
        router.add_api_route("/pause", self.pause, methods=["POST"])
        router.add_api_route("/resume", self.resume, methods=["POST"])
        return router

    async def pause(self, body: PauseAsked) -> PausesView:
        """Stop the engine of this machine for a run; answered once it has ended, after the answers on their way.

        To be asked again before `seconds` are over: an engine that nobody asks to stay away comes back by itself.
        """
        await self._pauses.pause(body.job, body.seconds)
        return self._view()

    async def resume(self, body: PauseOver) -> PausesView:
        """A run needs the GPU no longer; the engine starts when no other does."""
        self._pauses.resume(body.job)
        return self._view()

    def _view(self) -> PausesView:
        jobs = sorted(self._pauses.holders)
        return PausesView(paused=bool(jobs), jobs=jobs)
