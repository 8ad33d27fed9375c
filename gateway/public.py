"""The public port's other routes, through FastAPI: the model list, liveness and readiness, and 404 for the rest.

Inference never comes here (gateway/v1/routes.py takes it first). Must not know how an answer is generated.
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException, Request, Response

from adapters.errors import ServiceError
from gateway.errors import MethodNotAllowed, UnknownRoute
from gateway.health import LIVE, Health
from gateway.v1 import wire
from gateway.v1.dialect import BY_PATH
from gateway.v1.proxy import Proxy
from gateway.v1.routing import resolve
from gateway.v1.snapshot import Key

JSON = "application/json"


def create_public(proxy: Proxy, health: Health) -> FastAPI:
    """The ASGI app behind the public port's connections."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    def caller(request: Request) -> Key:
        return proxy.auth.authenticate(dict(request.scope["headers"]), proxy.snapshot.keys, proxy.wall())

    def answer(proxy: Proxy, status: int, body: bytes) -> Response:
        return Response(body, status, {"x-request-id": proxy.new_request_id().decode()}, JSON)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        key, snapshot = caller(request), proxy.snapshot
        visible = [t for t in snapshot.models.values() if key.models is None or t.name in key.models]
        return answer(proxy, 200, wire.models_body(visible, snapshot.base))

    @app.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> Response:
        target = resolve(proxy.snapshot, caller(request), model)
        return answer(proxy, 200, wire.model_body(target, proxy.snapshot.base, model))

    @app.get("/livez")
    async def livez() -> Response:
        return answer(proxy, 200, wire.encode(LIVE))

    @app.get("/readyz")
    async def readyz() -> Response:
        ready, body = health.ready()
        return answer(proxy, 200 if ready else 503, wire.encode(body))

    @app.exception_handler(ServiceError)
    async def refused(_: Request, error: ServiceError) -> Response:
        response = answer(proxy, error.status, wire.openai_error(error))
        for name, value in wire.error_headers(error):
            response.headers[name.decode()] = value.decode()
        return response

    @app.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> Response:
        return await refused(request, UnknownRoute("This URL is not served here. See the README for the routes."))

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: HTTPException) -> Response:
        allow = "POST" if request.url.path in BY_PATH else (error.headers or {}).get("Allow", "")
        return await refused(request, MethodNotAllowed(f"{request.method} is not answered here.", allow=allow))

    async def only_by_post(_: Request) -> Response:
        raise HTTPException(405)

    for path in BY_PATH:  # a POST to them never comes here; any other method is 405 and not 404
        app.add_route(path, only_by_post)
    return app
