"""/admin/v1/keys: create, list, show, change, rotate, revoke."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query

from gateway.admin.access import Admin, admin
from gateway.admin.schemas import KeyChange, KeyCreate, KeyIssued, KeyRotate, KeyView, Listed, Paging
from gateway.keys import ApiKey, Grant, Issued, KeyService, Limits

_LIMITS = ("rpm", "tpm", "concurrency", "daily_tokens")


class KeyRoutes:
    def __init__(self, keys: KeyService) -> None:
        self._keys = keys

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1/keys", dependencies=[Depends(admin)], tags=["keys"])
        router.add_api_route("", self.create, methods=["POST"], status_code=201)
        router.add_api_route("", self.list, methods=["GET"])
        router.add_api_route("/{key_id}", self.show, methods=["GET"])
        router.add_api_route("/{key_id}", self.update, methods=["PATCH"])
        router.add_api_route("/{key_id}", self.revoke, methods=["DELETE"])
        router.add_api_route("/{key_id}/rotate", self.rotate, methods=["POST"])
        return router

    async def create(self, body: KeyCreate, caller: Admin) -> KeyIssued:
        """Make a key. Its token is in this answer and nowhere else."""
        limits = Limits(body.rpm, body.tpm, body.concurrency, body.daily_tokens)
        models = None if body.models is None else frozenset(body.models)
        grant = Grant(body.name, frozenset(body.scopes), models, limits, _seconds(body.expires_at))
        return _issued(await self._keys.create(grant, caller))

    async def list(self, paging: Annotated[Paging, Query()]) -> Listed[KeyView]:
        """All keys, oldest first, revoked ones included."""
        page = await self._keys.list(paging.after, paging.limit)
        return Listed[KeyView](data=[_view(key) for key in page.items], has_more=page.has_more)

    async def show(self, key_id: str) -> KeyView:
        return _view(await self._keys.show(key_id))

    async def update(self, key_id: str, body: KeyChange, caller: Admin) -> KeyView:
        """Change what is given; null takes a limit away."""
        return _view(await self._keys.update(key_id, lambda grant: _changed(grant, body), caller))

    async def revoke(self, key_id: str, caller: Admin) -> KeyView:
        """End a key for good."""
        return _view(await self._keys.revoke(key_id, caller))

    async def rotate(
        self, key_id: str, caller: Admin, body: Annotated[KeyRotate, Body(default_factory=KeyRotate)]
    ) -> KeyIssued:
        """A new token; the old one stays good for `grace_s` seconds."""
        return _issued(await self._keys.rotate(key_id, float(body.grace_s), caller))


def _changed(grant: Grant, body: KeyChange) -> Grant:
    given = body.model_fields_set
    limits = replace(grant.limits, **{name: getattr(body, name) for name in _LIMITS if name in given})
    return Grant(
        name=body.name if "name" in given else grant.name,
        scopes=frozenset(body.scopes) if "scopes" in given else grant.scopes,
        models=(None if body.models is None else frozenset(body.models)) if "models" in given else grant.models,
        limits=limits,
        expires_at=_seconds(body.expires_at) if "expires_at" in given else grant.expires_at,
    )


def _seconds(moment: int | datetime | None) -> float | None:
    if moment is None:
        return None
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _view(key: ApiKey) -> KeyView:
    grant, limits = key.grant, key.grant.limits
    return KeyView(
        id=key.id,
        name=grant.name,
        scopes=sorted(grant.scopes),
        models=None if grant.models is None else sorted(grant.models),
        rpm=limits.rpm,
        tpm=limits.tpm,
        concurrency=limits.concurrency,
        daily_tokens=limits.daily_tokens,
        expires_at=_whole(grant.expires_at),
        created_at=int(key.created_at),
        revoked_at=_whole(key.revoked_at),
    )


def _issued(issued: Issued) -> KeyIssued:
    return KeyIssued(key=issued.token, **_view(issued.key).model_dump())
