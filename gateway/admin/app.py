"""The admin port's app: which routes exist, in one list. Built by gateway/app.py; builds nothing at import."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adapters.service import AdapterService
from adapters.sources.arrivals import Arrivals
from adapters.types import Canary
from gateway.admin import problems
from gateway.admin.adapters import AdapterRoutes
from gateway.admin.docs import DocRoutes
from gateway.admin.edge import Edge
from gateway.admin.engine import EngineRoutes
from gateway.admin.feedback import FeedbackRoutes
from gateway.admin.files import FileRoutes
from gateway.admin.guard import Guard
from gateway.admin.jobs import JobRoutes
from gateway.admin.keys import KeyRoutes
from gateway.admin.previews import PreviewRoutes
from gateway.admin.render import RenderRoutes
from gateway.admin.status import StatusRoutes, metrics_router
from gateway.admin.uploads import IntakeRoutes, Uploads, is_upload
from gateway.admin.usage import UsageRoutes
from gateway.following import Following
from gateway.keys import Key, KeyService, verify
from gateway.pausing import Pauses
from gateway.usage import UsageService
from training.feedback import FeedbackService
from training.places import Places
from training.previews import Previews
from training.service import JobService

DESCRIPTION = "Every route takes the admin key as a bearer token, except /livez, /readyz and /metrics."


@dataclass(frozen=True, slots=True)
class AdminServices:
    """What the admin port is a door to. live_keys: the snapshot's keys, asked at every request.

    following: events of jobs as they happen. canary_figures: what both arms of a name's canary did.
    clock: unix seconds. new_id: makes `x-request-id`s.
    """

    keys: KeyService
    adapters: AdapterService
    arrivals: Arrivals
    canary_figures: Callable[[str, Canary], dict[str, Any]]
    usage: UsageService
    jobs: JobService
    following: Following
    places: Places
    previews: Previews
    pauses: Pauses
    feedback: FeedbackService
    live_keys: Callable[[], Mapping[str, Key]] = field(repr=False)
    status: Callable[[], dict[str, Any]]
    ready: Callable[[], tuple[bool, dict[str, Any]]]
    metrics: Callable[[], bytes]
    clock: Callable[[], float]
    new_id: Callable[[], str]


def create_admin(services: AdminServices) -> FastAPI:
    """The control plane: every route, its policy declared where it is made."""
    app = _app("loragate admin API")
    jobs = JobRoutes(services.jobs, services.following, services.places)
    for room in (
        KeyRoutes(services.keys),
        AdapterRoutes(services.adapters, services.arrivals, services.canary_figures),
        FileRoutes(services.adapters),
        IntakeRoutes(services.arrivals),
        RenderRoutes(services.adapters),
        jobs,
        PreviewRoutes(services.previews, jobs.within_reach),
        EngineRoutes(services.pauses),
        UsageRoutes(services.usage),
        FeedbackRoutes(services.feedback),
        StatusRoutes(services.status, services.ready, services.metrics),
        DocRoutes(app),
    ):
        # Not `include_router`: it makes each route a second time, at the first request: 100 ms of CPU.
        app.router.routes.extend(room.router().routes)
    app.add_middleware(Uploads, arrivals=services.arrivals)
    app.add_middleware(
        Edge, admit=Guard(_authenticator(services)).admit, new_id=services.new_id, streamed=is_upload
    )  # added last: the outermost
    return app


def create_metrics(metrics: Callable[[], bytes], new_id: Callable[[], str]) -> FastAPI:
    """/metrics alone, for a scraper that may not see the admin port. Everything else is 404."""
    app = _app("loragate metrics")
    app.router.routes.extend(metrics_router(metrics).routes)
    app.add_middleware(Edge, admit=lambda scope: None, new_id=new_id)
    return app


def _app(title: str) -> FastAPI:
    app = FastAPI(
        title=title,
        description=DESCRIPTION,
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    return app


def _authenticator(services: AdminServices) -> Callable[[bytes], Key | None]:
    keys, root = services.keys, {services.keys.root.id: services.keys.root}

    def authenticate(token: bytes) -> Key | None:
        return verify(token, ChainMap(root, services.live_keys()), keys.pepper, services.clock())  # type: ignore[arg-type]

    return authenticate


# What these raise is rendered by the edge, which is the one place for that.


def _invalid(_: Request, error: Exception) -> NoReturn:
    raise problems.from_validation(error) if isinstance(error, RequestValidationError) else error


def _refused(_: Request, error: Exception) -> NoReturn:
    raise problems.from_http(error) if isinstance(error, HTTPException) else error
