"""/v1/models: what would answer this key now, and DELETE for whom an adapter belongs to.

Listed is what a request for it would be answered with: live, made for the served base, its files there, and not
refused by every engine. Must not know how a request is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Request, Response

from adapters.errors import Conflict, InvalidRequest, NotFound
from adapters.service import AdapterService
from adapters.types import Adapter, ReplicaState, ReplicaView
from gateway.errors import Forbidden, ModelInUse, ModelNotFound
from gateway.v1 import wire
from gateway.v1.proxy import Proxy
from gateway.v1.routing import resolve
from gateway.v1.snapshot import Key, Target

ADMIN = "admin"

Answer = Callable[[int, bytes], Response]  # status, JSON body


class Failing:
    """Which weights no engine takes: their last load or proof failed on every one that is ready.

    While none is ready it is what it was: a list that empties with every restart would have clients believe that
    their models are gone, where /readyz and a 503 say what is true.
    """

    def __init__(self, residency: Callable[[], Mapping[str, ReplicaView]]) -> None:
        self._residency = residency
        self._last: frozenset[str] = frozenset()

    def everywhere(self) -> frozenset[str]:
        """Engine names."""
        views = [view for view in self._residency().values() if view.state is ReplicaState.READY]
        if views:
            self._last = frozenset.intersection(*(frozenset(view.failed) - view.resident for view in views))
        return self._last


class ModelRoutes:
    def __init__(self, proxy: Proxy, adapters: AdapterService, failing: Failing) -> None:
        self._proxy = proxy
        self._adapters = adapters
        self._failing = failing

    def router(self, answer: Answer) -> APIRouter:
        """answer: makes the response, with what every one of this port has."""
        router = APIRouter()

        async def listing(request: Request) -> Response:
            return answer(200, self.listing(self._caller(request)))

        async def one(model: str, request: Request) -> Response:
            return answer(200, self.one(self._caller(request), model))

        async def delete(model: str, request: Request) -> Response:
            proxy = self._proxy
            key = proxy.auth.identify(dict(request.scope["headers"]), proxy.snapshot.keys, proxy.wall())
            return answer(200, await self.delete(key, model))

        router.add_api_route("/v1/models", listing, methods=["GET"], response_model=None)
        router.add_api_route("/v1/models/{model:path}", one, methods=["GET"], response_model=None)
        router.add_api_route("/v1/models/{model:path}", delete, methods=["DELETE"], response_model=None)
        return router

    def listing(self, key: Key) -> bytes:
        """Every public name that would answer this key."""
        snapshot, failing = self._proxy.snapshot, self._failing.everywhere()
        found = [
            target
            for target in snapshot.models.values()
            if (key.models is None or target.name in key.models) and target.engine_name not in failing
        ]
        return wire.models_body(found, snapshot.base)

    def one(self, key: Key, model: str) -> bytes:
        """A listed name, or `name@<12 hex>` by the same rules; ModelNotFound."""
        return wire.model_body(self._seen(key, model), self._proxy.snapshot.base, model)

    async def delete(self, key: Key, model: str) -> bytes:
        """Remove an adapter or one version for its owner, or for whoever may administer.

        Whoever may only use it gets Forbidden, and who may not even that ModelNotFound. ModelInUse for a version
        that answers.
        """
        if model == self._proxy.snapshot.base:
            self._seen(key, model)
            raise Forbidden("The base model belongs to no key and cannot be deleted here.", retryable=False)
        name, at, version = model.partition("@")
        adapter = await self._find(name, version) if version or not at else None
        if adapter is None:
            raise ModelNotFound(_missing(model), param="model")
        administers = ADMIN in key.scopes and (key.models is None or name in key.models)
        if not administers and adapter.owner != key.id:
            self._seen(key, model)
            raise Forbidden(
                f"This key may use {name}, but not delete it: its owner may, or a key with the scope admin.",
                retryable=False,
            )
        try:
            await self._adapters.remove(name, version or None, by=key.id, why="DELETE /v1/models")
        except NotFound:  # somebody was quicker
            raise ModelNotFound(_missing(model), param="model") from None
        except Conflict as error:
            raise ModelInUse(error.message, param="model") from None
        return wire.deleted_body(model)

    async def _find(self, name: str, version: str) -> Adapter | None:
        try:
            adapter = await self._adapters.show(name)
        except (NotFound, InvalidRequest):
            return None
        return adapter if not version or any(each.version == version for each in adapter.versions) else None

    def _seen(self, key: Key, model: str) -> Target:
        target = resolve(self._proxy.snapshot, key, model)
        if target.engine_name in self._failing.everywhere():
            raise ModelNotFound(_missing(model), param="model")
        return target

    def _caller(self, request: Request) -> Key:
        proxy = self._proxy
        return proxy.auth.authenticate(dict(request.scope["headers"]), proxy.snapshot.keys, proxy.wall())


def _missing(model: str) -> str:
    return f"The model `{model[:128]}` does not exist or this key may not use it. GET /v1/models lists what it may."
