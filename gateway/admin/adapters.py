"""/admin/v1/adapters: register, list, show, check, promote, canary, roll back, limit, load, unload, remove, history."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request
from starlette.responses import JSONResponse

from adapters.errors import AdapterRejected, Conflict, InvalidRequest, NotFound
from adapters.names import check_public_name
from adapters.service import AdapterService
from adapters.sources.arrivals import Arrivals
from adapters.types import Adapter, Canary, Rules, Version
from gateway.admin import verdicts
from gateway.admin.access import Admin, admin, may_register, reaches, who
from gateway.admin.schemas import (
    NAME,
    VERSION,
    AdapterRegister,
    AdapterSource,
    AdapterView,
    CanaryChosen,
    CanaryView,
    EventView,
    HistoryPaging,
    LimitsChange,
    LimitsView,
    Listed,
    OnlyWhy,
    Paging,
    PlacementView,
    RemovedVersion,
    RemovedView,
    RulesView,
    VersionChosen,
    VersionOrLive,
    VersionView,
)
from gateway.admin.uploads import arriving
from gateway.admin.verdicts import CheckRefusedView, CheckView

# Whatever else stands in a URL is not repeated in a refusal.
Name = Annotated[str, Path(pattern=NAME)]
Version12 = Annotated[str, Path(pattern=VERSION, description="12 hex digits")]


Figures = Callable[[str, Canary], dict[str, Any]]  # public name, its canary → what both arms did


def within_reach(name: Name, caller: Admin) -> None:
    """What a key may not see does not exist for it, as on the public port."""
    if not reaches(caller, name):
        raise NotFound(f"There is no adapter {name} for this key: it may use some models only.", param="name")


class AdapterRoutes:
    def __init__(self, adapters: AdapterService, arrivals: Arrivals, canary_figures: Figures) -> None:
        self._adapters = adapters
        self._arrivals = arrivals
        self._figures = canary_figures

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1/adapters", dependencies=[Depends(admin)], tags=["adapters"])
        router.add_api_route("", self.register, methods=["POST"], status_code=201)
        router.add_api_route("", self.list, methods=["GET"])
        refused: dict[int | str, dict[str, Any]] = {400: {"model": CheckRefusedView}}
        router.add_api_route("/check", self.check, methods=["POST"], response_model=CheckView, responses=refused)
        own = [Depends(within_reach)]
        router.add_api_route("/{name}", self.show, methods=["GET"], dependencies=own)
        router.add_api_route("/{name}", self.remove, methods=["DELETE"], dependencies=own)
        router.add_api_route("/{name}", self.limit, methods=["PATCH"], dependencies=own)
        router.add_api_route("/{name}/history", self.history, methods=["GET"], dependencies=own)
        router.add_api_route("/{name}/versions/{version}/lineage", self.lineage, methods=["GET"], dependencies=own)
        router.add_api_route("/{name}/promote", self.promote, methods=["POST"], dependencies=own)
        router.add_api_route("/{name}/rollback", self.rollback, methods=["POST"], dependencies=own)
        router.add_api_route("/{name}/canary", self.canary, methods=["POST"], dependencies=own)
        router.add_api_route("/{name}/load", self.load, methods=["POST"], dependencies=own)
        router.add_api_route("/{name}/unload", self.unload, methods=["POST"], dependencies=own)
        return router

    async def register(self, body: AdapterRegister, request: Request, caller: Admin) -> AdapterView:
        """Check an adapter, store it as a new version and load it into every engine; the same content adds nothing.

        As multipart/form-data too: the same fields, and an archive as `file` in place of `source`.
        """
        may_register(caller, body.name)
        check_public_name(body.name)  # before gigabytes are fetched for nothing
        async with arriving(self._arrivals, request, body.source, body.name) as arrived:
            made = await self._adapters.register(
                arrived.folder,
                body.name,
                promote=body.promote,
                notes=body.notes,
                source=arrived.source,
                checksums=arrived.checksums,
                lineage=json.dumps(body.lineage) if body.lineage is not None else None,
                owner=body.owner,
                by=who(caller),
            )
        return self._view(made)

    async def list(self, paging: Annotated[Paging, Query()], caller: Admin) -> Listed[AdapterView]:
        """All adapters by name."""
        found, has_more = await self._adapters.list(after=paging.after, limit=paging.limit, only=caller.models)
        return Listed[AdapterView](data=[self._view(adapter) for adapter in found], has_more=has_more)

    async def check(self, body: AdapterSource, request: Request) -> CheckView | JSONResponse:
        """Whether an adapter could be served, and all that speaks against it; nothing is stored or loaded.

        Takes a `file` too, as registering does.
        """
        try:
            async with arriving(self._arrivals, request, body.source) as arrived:
                return verdicts.taken(await self._adapters.check(arrived.folder))
        except AdapterRejected as error:
            return verdicts.refused(error)

    async def show(self, name: Name) -> AdapterView:
        """One adapter, its versions, and where each is loaded."""
        return self._view(await self._adapters.show(name))

    async def limit(self, name: Name, body: LimitsChange, caller: Admin) -> AdapterView:
        """Limit all callers of an adapter together, whatever their keys allow."""
        change = {field: getattr(body, field) for field in body.model_fields_set - {"why"}}
        return self._view(await self._adapters.limit(name, change, by=who(caller), why=body.why))

    async def history(self, name: Name, paging: Annotated[HistoryPaging, Query()]) -> Listed[EventView]:
        """Who moved what, when and why: the newest first, also of an adapter that is gone."""
        found, has_more = await self._adapters.history(name, before=paging.before, limit=paging.limit)
        events = [EventView(id=e.id, at=int(e.at), what=e.what, version=e.version, by=e.by, why=e.why) for e in found]
        return Listed[EventView](data=events, has_more=has_more)

    async def lineage(self, name: Name, version: Version12) -> JSONResponse:
        """How a version was made, as whoever registered it said."""
        return JSONResponse(json.loads(await self._adapters.lineage(name, version)))

    async def remove(self, name: Name, which: Annotated[RemovedVersion, Query()], caller: Admin) -> RemovedView:
        """Remove an adapter, or one of its versions that is not live, from engines and store."""
        gone = await self._adapters.remove(name, which.version, by=who(caller), why=which.why)
        return RemovedView(name=name, removed=[version.version for version in gone])

    async def promote(self, name: Name, body: VersionChosen, caller: Admin) -> AdapterView:
        """Let the name answer with a version, once every ready engine has it."""
        return self._view(await self._adapters.promote(name, body.version, by=who(caller), why=body.why))

    async def rollback(
        self, name: Name, caller: Admin, body: Annotated[OnlyWhy, Body(default_factory=OnlyWhy)]
    ) -> AdapterView:
        """Let the name answer with the version before."""
        return self._view(await self._adapters.rollback(name, by=who(caller), why=body.why))

    async def canary(self, name: Name, body: CanaryChosen, caller: Admin) -> AdapterView:
        """Let a version answer a share of the callers until it is worse than the live one; percent 0 ends that."""
        if body.percent == 0:
            if not await self._adapters.end_canary(name, by=who(caller), why=body.why, only=body.version):
                raise Conflict(
                    f"{name} has no canary{' of that version' if body.version else ''}. "
                    f"`loragate adapters show {name}` says what answers."
                )
            return self._view(await self._adapters.show(name))
        if body.version is None:
            raise InvalidRequest("`version` is required: 12 hex digits of the version to try.", param="version")
        rules = Rules(**body.rules.model_dump())
        by, why = who(caller), body.why
        made = await self._adapters.canary(name, body.version, body.percent, rules=rules, by=by, why=why)
        return self._view(made)

    async def load(
        self, name: Name, caller: Admin, body: Annotated[VersionOrLive, Body(default_factory=VersionOrLive)]
    ) -> AdapterView:
        """Keep a version loaded on every engine."""
        return self._view(await self._adapters.load(name, body.version, by=who(caller), why=body.why))

    async def unload(self, name: Name, body: VersionChosen, caller: Admin) -> AdapterView:
        """Free a version in every engine; it stays in the store."""
        return self._view(await self._adapters.unload(name, body.version, by=who(caller), why=body.why))

    def _view(self, adapter: Adapter) -> AdapterView:
        return AdapterView(
            name=adapter.name,
            live=adapter.live,
            previous=adapter.previous,
            canary=self._canary(adapter.name, adapter.canary) if adapter.canary is not None else None,
            owner=adapter.owner,
            limits=LimitsView(**asdict(adapter.ceilings)),
            versions=[_version(version) for version in adapter.versions],
        )

    def _canary(self, name: str, canary: Canary) -> CanaryView:
        return CanaryView(
            version=canary.version,
            percent=canary.percent,
            since=int(canary.since),
            rules=RulesView(**asdict(canary.rules)),
            **self._figures(name, canary),
        )


def _version(version: Version) -> VersionView:
    replicas = [PlacementView(url=p.url, state=p.state.value, reason=p.reason or None) for p in version.replicas]
    return VersionView(
        version=version.version,
        state=version.state.value,
        pinned=version.pinned,
        created_at=int(version.created_at),
        source=version.source,
        notes=version.notes,
        size_bytes=version.size_bytes,
        rank=version.rank,
        registered_by=version.registered_by,
        checksums=json.loads(version.checksums) if version.checksums else None,
        lineage=version.has_lineage,
        thinking=version.thinking,
        replicas=replicas,
    )
