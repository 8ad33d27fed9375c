"""What operators do with adapters: check, register, promote, roll back, load, unload, remove.

Order decides what a crash can leave: files before rows, weights in engines before names point at them, names
gone before weights. Must not know HTTP doors or how things are shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters import intake, revision, store
from adapters.db import Database
from adapters.errors import Conflict, EngineError, InvalidName, InvalidRequest, NotFound, ServiceError
from adapters.gateways import Alone, Gateways
from adapters.intake import Checked
from adapters.lineage import thinking
from adapters.names import check_public_name, check_version, engine_name
from adapters.reconcile import Reconciler
from adapters.served import BaseInfo, described
from adapters.shelf import Draft, Shelf
from adapters.store import Wish
from adapters.store_history import history, registrars
from adapters.swap import Swap
from adapters.traffic import NoTraffic, Traffic
from adapters.types import Adapter, Canary, Event, PlacementState, Rules, Version, VersionState

MAX_NOTES = 4096
_log = logging.getLogger(__name__)
OPERATOR = "operator"  # who moved it, where no key says so


async def _nobody() -> None:
    return None


class AdapterService:
    """One per gateway. `changed` is awaited after every commit that requests must see.

    traffic: what of the adapters is in use; the reconciler's own. gateways: the others on this database.
    """

    def __init__(
        self,
        db: Database,
        shelf: Shelf,
        reconciler: Reconciler,
        *,
        clock: Callable[[], float],
        max_lora_rank: int = 16,
        changed: Callable[[], Awaitable[None]] = _nobody,
        traffic: Traffic | None = None,
        gateways: Gateways | None = None,
    ) -> None:
        self._db = db
        self._shelf = shelf
        self._reconciler = reconciler
        self._clock = clock
        self._max_lora_rank = max_lora_rank
        self._changed = changed
        self._gateways = gateways or Alone()
        self._swap = Swap(db, shelf, reconciler, traffic or NoTraffic(), self._gateways)
        self._intake = asyncio.Lock()  # one folder at a time: it takes a core and the disk

    @property
    def base_root(self) -> str | None:
        """What the engines were started with as their model: a folder, or a hub id. None until one has said."""
        return self._reconciler.base.root if self._reconciler.base is not None else None

    async def recover(self) -> tuple[str, ...]:
        """At start: delete what a crash left in the store, mark versions without files; names of what was swept.

        An empty registry beside a full store means that the database was lost: then no finished folder is touched,
        but those that the registry knows to have been removed.
        """
        known = await self._db.read(store.known)
        is_known = self._asks(lambda conn, name: name in (store.known if known else store.never_removed)(conn, [name]))
        later: list[str] = []  # another gateway may have requests in flight on these
        others = await self._gateways.present()
        keep = partial(_kept, is_known, later) if others else is_known
        swept = await asyncio.to_thread(self._shelf.sweep, known, keep)
        if later:
            self._swap.discard_later(later)
        missing = await asyncio.to_thread(self._shelf.missing, known)
        if missing and others:  # they serve them: it is this one that may have been started without its store
            _log.error(
                "%d of %d versions have no files in %s (%s for one), and count as whole because other gateways run. "
                "Give all gateways the same data directory.",
                len(missing),
                len(known),
                self._shelf.root,
                min(missing),
            )
        await self._db.write(lambda conn: store.set_damaged(conn, missing, more=not others))
        return swept

    async def close(self) -> None:
        """Stop waiting for requests to end; what was not deleted yet is swept at the next start."""
        await self._swap.close()

    async def check(self, source: Path) -> Checked:
        """Would this folder be accepted? Writes nothing. AdapterRejected."""
        base = await self._base()
        return await asyncio.to_thread(intake.check, source, base, self._max_lora_rank)

    async def register(
        self,
        folder: Path,
        name: str,
        *,
        promote: bool = False,
        notes: str = "",
        source: str = "",
        checksums: Mapping[str, str] | None = None,
        lineage: str | None = None,
        owner: str | None = None,
        by: str = OPERATOR,
    ) -> Adapter:
        """Check, store and hot-load `folder` as a version of `name`; the same content is the same version.

        source: where the folder came from, where it is not the source itself; checksums: file → sha256 as it came;
        lineage: JSON, how it was made; owner: the key that may delete the adapter. With `promote` the name points at
        it once every engine that is ready has it. Raises AdapterRejected, InvalidName, StorageFull, Conflict;
        EngineError when it was registered but could not be promoted.
        """
        base = await self._base()
        self._check_free(name, base)
        async with self._intake:
            draft = await asyncio.to_thread(self._shelf.draft)
            try:
                checked = await asyncio.to_thread(intake.check, folder, base, self._max_lora_rank, draft.write)
                version = self._described(name, checked, base, source or str(folder), notes[:MAX_NOTES])
                version = replace(
                    version,
                    checksums=json.dumps(dict(checksums)) if checksums else None,
                    thinking=thinking(lineage),
                )
                add = partial(store.add, version=version, by=by, owner=owner, lineage=lineage)
                await self._keep(draft, version, checked, base, add)
            finally:
                draft.close()
        await self._changed()
        if promote:
            return await self.promote(name, version.version, by=by)
        await self._reconciler.load_on(version.engine_name, wait_s=None)  # where there is room, else when asked for
        return await self.show(name)

    async def list(
        self, *, after: str | None = None, limit: int = 100, only: Collection[str] | None = None
    ) -> tuple[tuple[Adapter, ...], bool]:
        """At most `limit` adapters by name behind `after` (with `only`: of those names), and whether there are more."""

        def look(conn: sa.Connection) -> tuple[tuple[Adapter, ...], bool, dict[tuple[str, str], str | None]]:
            found, more = store.page(conn, after, limit, only)
            return found, more, registrars(conn, [adapter.name for adapter in found])

        found, more, by = await self._db.read(look)
        return tuple(self._placed(adapter, by) for adapter in found), more

    async def show(self, name: str) -> Adapter:
        """One adapter, with where each version is loaded; NotFound."""
        return self._placed(*await self._db.read(lambda conn: (store.find(conn, name), registrars(conn, [name]))))

    async def history(self, name: str, *, before: int | None, limit: int) -> tuple[tuple[Event, ...], bool]:
        """What happened to `name`, newest first, and whether there is more; also of one that was removed. NotFound."""
        found, more = await self._db.read(lambda conn: history(conn, name, before, limit))
        if not found and before is None:
            await self._db.read(lambda conn: store.find(conn, name))
        return found, more

    async def lineage(self, name: str, version: str) -> str:
        """How a version was made, as JSON; NotFound, also where nobody said."""

        def read(conn: sa.Connection) -> str | None:
            return store.lineage(conn, store.find_version(conn, name, check_version(version)).engine_name)

        found = await self._db.read(read)
        if found is None:
            raise NotFound(f"Nobody said how {name}@{version} was made.", param="version")
        return found

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """The token ids of the prompt that an engine makes of a conversation. Unavailable, InvalidRequest."""
        asked: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
        if tools:
            asked["tools"] = list(tools)
        if chat_template_kwargs:
            asked["chat_template_kwargs"] = dict(chat_template_kwargs)
        return await self._reconciler.tokenize(asked)

    async def promote(self, name: str, version: str, *, by: str = OPERATOR, why: str = "") -> Adapter:
        """Point `name` at `version` once every ready engine has it; the others catch up when they are back.

        Raises NotFound, Conflict; EngineError where an engine refuses it, and then nothing has moved.
        """
        return await self._point(name, check_version(version), "promoted", by, why)

    async def rollback(self, name: str, *, by: str = OPERATOR, why: str = "") -> Adapter:
        """Point `name` at what answered before; a second rollback undoes the first. NotFound, Conflict, EngineError."""
        adapter = await self._db.read(lambda conn: store.find(conn, name))
        if adapter.previous is None:
            raise Conflict(f"{name} has no previous version to go back to. Promote a version by its 12 digits instead.")
        return await self._point(name, adapter.previous, "rolled back", by, why, only_from=adapter.live)

    async def file(self, name: str, version: str, file: str) -> Path:
        """Where one of the two files of a version lies. NotFound."""
        asked = check_version(version)
        found = await self._db.read(lambda conn: store.find_version(conn, name, asked))
        return self._shelf.path(found.engine_name) / file

    async def canary(
        self, name: str, version: str, percent: float, *, rules: Rules | None = None, by: str = OPERATOR, why: str = ""
    ) -> Adapter:
        """Let `version` answer `percent` of the callers of `name`, once every ready engine has it.

        Raises NotFound, Conflict, InvalidRequest; EngineError where an engine refuses it, and then nothing has moved.
        """
        if not 0 < percent <= 100:
            raise InvalidRequest("`percent` is above 0 and at most 100; 100 is what promote does.", param="percent")
        found = await self._one(name, version)
        at = self._clock()
        given = Canary(found.version, percent, at, rules or Rules())
        return await self._move(found, lambda conn: store.set_canary(conn, name, given, at, by=by, why=why))

    async def end_canary(
        self, name: str, *, by: str = OPERATOR, why: str = "", only: str | None = None, since: float | None = None
    ) -> bool:
        """Answer all callers of `name` with the live version; False where no canary, or another one, runs.

        only, since: its version, and when it began.
        """
        before = await self._db.read(lambda conn: store.find(conn, name))
        end = partial(store.end_canary, name=name, at=self._clock(), by=by, why=why, only=only, since=since)
        ended = await self._db.write(end)
        if ended:
            await self._moved(before)
        return ended

    async def limit(self, name: str, change: Mapping[str, int | None], *, by: str = OPERATOR, why: str = "") -> Adapter:
        """Limit all callers of `name` together. change: some fields of Ceilings; None: the settings. NotFound."""
        at = self._clock()
        await self._db.write(lambda conn: store.set_ceilings(conn, name, change, at, by=by, why=why))
        await self._changed()
        return await self.show(name)

    async def load(self, name: str, version: str | None = None, *, by: str = OPERATOR, why: str = "") -> Adapter:
        """Keep `version` (None: the live one) loaded on every engine; NotFound, Conflict, EngineError."""
        found = await self._one(name, version)
        await self._pin(found, by, why)
        await self._load(found, "It stays wanted and is tried again.")
        return await self.show(name)

    async def _pin(self, version: Version, by: str, why: str) -> None:
        """At most all slots but one: what is not pinned must be able to answer."""
        at = self._clock()
        held = [view.capacity for view in self._reconciler.residency.values() if view.capacity is not None]

        def pin(conn: sa.Connection) -> None:
            revision.hold(conn)
            others = store.pinned(conn) - {version.engine_name}
            if held and len(others) + 1 > min(held) - 1:
                raise Conflict(
                    f"{len(others)} adapters are pinned, and the smallest engine holds {min(held)}: one place must "
                    "stay for all others. Unload a pinned one, or start the engines with a larger --max-loras."
                )
            store.set_wish(conn, version, Wish.LOADED, at, by=by, why=why)

        await self._db.write(pin)
        self._reconciler.pin(version.engine_name)

    async def unload(self, name: str, version: str, *, by: str = OPERATOR, why: str = "") -> Adapter:
        """Free `version` in every engine until it is asked for again; what answers callers is only kept no longer.

        NotFound, Conflict for what answers callers and was not to be kept.
        """
        found, at = await self._one(name, version), self._clock()
        if found.state in (VersionState.LIVE, VersionState.CANARY) and await self._db.write(
            lambda conn: store.set_wish(conn, found, Wish.AUTO, at, by=by, why=why)
        ):
            self._reconciler.wake()
            return await self.show(name)
        _check_idle(found)
        await self._db.write(lambda conn: store.set_wish(conn, found, Wish.UNLOADED, at, by=by, why=why))
        at_rest = await self._swap.at_rest(found.engine_name)
        _check_idle(await self._one(name, version))  # that may take a while
        outcomes = await self._reconciler.unload_everywhere(found.engine_name) if at_rest else {}
        if not at_rest or any(isinstance(error, Conflict) for error in outcomes.values()):
            raise Conflict(f"Requests still run on {name}@{version}. Try again when they have ended.")
        _raise_first(outcomes, "Try again.")
        return await self.show(name)

    async def remove(
        self, name: str, version: str | None = None, *, by: str = OPERATOR, why: str = ""
    ) -> tuple[Version, ...]:
        """Remove one version, or the whole adapter; returns what went. NotFound, Conflict for the live version.

        Names go first, then the engines unload, then the files go: at once, or when the requests of before are over.
        An engine that is away unloads when it is back.
        """
        at = self._clock()
        gone = await self._db.write(lambda conn: store.remove(conn, name, version, at, by=by, why=why))
        await self._changed()
        names = [each.engine_name for each in gone]
        still = await self._db.read(lambda conn: store.known(conn, names))  # a:b and a-b share equal weights
        await self._swap.discard(frozenset(names) - still)
        return gone

    def _asks(self, question: Callable[[sa.Connection, str], bool]) -> Callable[[str], bool]:
        """The registry's answer for a thread that holds the lock of a folder."""
        loop = asyncio.get_running_loop()

        def asked(name: str) -> bool:
            return asyncio.run_coroutine_threadsafe(self._db.read(lambda conn: question(conn, name)), loop).result()

        return asked

    async def _keep(
        self,
        draft: Draft,
        version: Version,
        checked: Checked,
        base: BaseInfo | None,
        add: Callable[[sa.Connection], object],
    ) -> None:
        await self._db.read(lambda conn: store.check_clash(conn, version))
        named = base.root if base is not None and base.root is not None else checked.base
        await asyncio.to_thread(draft.place, version.engine_name, checked.config, named)
        try:
            await self._db.write(add)
        except ServiceError:
            draft.close()
            with suppress(ServiceError):  # swept at the next start
                await self._swap.discard([version.engine_name])
            raise

    async def _point(
        self, name: str, version: str, what: str, by: str, why: str, only_from: str | None = None
    ) -> Adapter:
        found = await self._one(name, version)
        at = self._clock()
        flip = partial(store.point, name=name, live=version, at=at, what=what, by=by, why=why, only_from=only_from)
        return await self._move(found, flip)

    async def _move(self, to: Version, flip: Callable[[sa.Connection], object]) -> Adapter:
        """Load and prove it, flip in one transaction, and retire what has no part any more."""
        before = await self._db.read(lambda conn: store.find(conn, to.name))
        live = next((each.engine_name for each in before.versions if each.version == before.live), None)
        with self._reconciler.guarding(to.engine_name):
            await self._load(to, f"{to.name} still answers as before.", like=live)
            await self._db.write(flip)
            await self._moved(before)
        return await self.show(to.name)

    async def _moved(self, before: Adapter) -> None:
        await self._changed()
        self._reconciler.wake()
        parts = (VersionState.LIVE, VersionState.CANARY, VersionState.PREVIOUS)
        names = [each.engine_name for each in before.versions if each.state in parts]
        self._swap.retire(await self._db.read(lambda conn: store.without_part(conn, names)))

    async def _load(self, version: Version, then: str, like: str | None = None) -> None:
        if version.state is VersionState.DAMAGED:
            raise Conflict(f"The files of {version.name}@{version.version} are gone. Register the same folder again.")
        base = self._reconciler.base
        if base is not None and version.base not in (None, base.id):
            raise Conflict(
                f"{version.name}@{version.version} was made for {version.base}, and {base.id} is served. "
                "Serve that base, or register an adapter made for this one."
            )
        await self._swap.bring(version.engine_name, like, then)

    async def _one(self, name: str, version: str | None) -> Version:
        if version is None:
            adapter = await self._db.read(lambda conn: store.find(conn, name))
            if adapter.live is None:
                raise Conflict(f"{name} has no live version. Name one by its 12 digits.", param="version")
            version = adapter.live
        asked = check_version(version)
        return await self._db.read(lambda conn: store.find_version(conn, name, asked))

    async def _base(self) -> BaseInfo | None:
        await self._reconciler.probed()
        base = self._reconciler.base
        return await asyncio.to_thread(described, base.id, base.root) if base is not None else None

    def _check_free(self, name: str, base: BaseInfo | None) -> None:
        check_public_name(name)
        taken = {base.id, base.id.rpartition("/")[2], *self._reconciler.base_names} if base is not None else set()
        if name in taken:
            raise InvalidName(f"{name} is the base model's name. Choose another name for the adapter.", param="name")

    def _described(self, name: str, checked: Checked, base: BaseInfo | None, source: str, notes: str) -> Version:
        return Version(
            name=name,
            version=checked.version,
            digest=checked.digest,
            engine_name=engine_name(name, checked.version),
            base=base.id if base is not None else None,
            rank=checked.rank,
            size_bytes=checked.size_bytes,
            source=source,
            notes=notes,
            created_at=self._clock(),
            state=VersionState.READY,
        )

    def _placed(self, adapter: Adapter, by: Mapping[tuple[str, str], str | None]) -> Adapter:
        return replace(adapter, versions=tuple(self._with_replicas(version, by) for version in adapter.versions))

    def _with_replicas(self, version: Version, by: Mapping[tuple[str, str], str | None]) -> Version:
        placements = []
        for view in self._reconciler.residency.values():
            place = view.placement(version.engine_name)
            if place.state is PlacementState.ABSENT and version.base not in (None, view.base):
                place = replace(place, reason=f"it was made for {version.base}, this engine serves {view.base}")
            placements.append(place)
        who = by.get((version.name, version.version))
        return replace(version, registered_by=who, replicas=tuple(placements))


def _kept(is_known: Callable[[str], bool], later: list[str], name: str) -> bool:
    if not is_known(name):
        later.append(name)
    return True


def _check_idle(version: Version) -> None:
    """Conflict for what answers callers."""
    said = f"{version.name}@{version.version}"
    if version.state is VersionState.LIVE:
        raise Conflict(f"{said} is live. Promote another version before unloading it.", param="version")
    if version.state is VersionState.CANARY:
        raise Conflict(f"{said} is the canary. End the canary before unloading it.", param="version")


def _raise_first(outcomes: Mapping[str, ServiceError | None], then: str) -> None:
    for error in outcomes.values():
        if error is not None:
            raise EngineError(f"{error.message} {then}")
