"""The public port's other routes, through FastAPI: models, files, fine-tuning and feedback (gateway/openai), liveness,
readiness, 404 for the rest.

Inference never comes here (gateway/v1/routes.py takes it first). Must not know how an answer is generated.
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException, Request, Response

from adapters.errors import ServiceError
from gateway.errors import MethodNotAllowed, UnknownRoute
from gateway.health import LIVE, Health
from gateway.openai.feedback import FeedbackRoutes
from gateway.openai.files import FileRoutes
from gateway.openai.fine_tuning import FineTuningRoutes
from gateway.openai.models import ModelRoutes
from gateway.v1 import wire
from gateway.v1.dialect import BY_PATH
from gateway.v1.proxy import Proxy

JSON = "application/json"


def create_public(
    proxy: Proxy,
    health: Health,
    models: ModelRoutes,
    files: FileRoutes,
    fine_tuning: FineTuningRoutes,
    feedback: FeedbackRoutes,
) -> FastAPI:
    """The ASGI app behind the public port's connections."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    def new_id() -> str:
        return proxy.new_request_id().decode()

    def answer(status: int, body: bytes) -> Response:
        return Response(body, status, {"x-request-id": new_id()}, JSON)

    for router in (
        models.router(answer),
        files.router(answer, new_id),
        fine_tuning.router(answer, new_id),
        feedback.router(answer),
    ):
        app.router.routes.extend(router.routes)  # as in gateway/admin/app.py

    @app.get("/livez")
    async def livez() -> Response:
        return answer(200, wire.encode(LIVE))

    @app.get("/readyz")
    async def readyz() -> Response:
        ready, body = health.ready()
        return answer(200 if ready else 503, wire.encode(body))

    @app.exception_handler(ServiceError)
    async def refused(_: Request, error: ServiceError) -> Response:
        response = answer(error.status, wire.openai_error(error))
        for name, value in wire.error_headers(error):
            response.headers[name.decode()] = value.decode()
        return response

    @app.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> Response:
        return await refused(request, UnknownRoute("This URL is not served here. See the README for the routes."))

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        allow = "POST" if path in BY_PATH else (error.headers or {}).get("Allow", "")
        if path.startswith(("/v1/models/", "/v1/files/")) and not path.endswith("/content"):
            allow = "GET, DELETE"  # two routes: the framework names the first one's
        elif path in ("/v1/files", "/v1/fine_tuning/jobs"):
            allow = "GET, POST"
        return await refused(request, MethodNotAllowed(f"{request.method} is not answered here.", allow=allow))

    async def only_by_post(_: Request) -> Response:
        raise HTTPException(405)

    for path in BY_PATH:  # a POST to them never comes here; any other method is 405 and not 404
        app.add_route(path, only_by_post)
    return app
