"""API keys: the verbs behind the CLI and the admin API (create, list, show, update, revoke, rotate).

Owns who may grant what. The token format is gateway/tokens.py's, rows are gateway/store.py's. Must not know HTTP.
A caller can grant, change, rotate or revoke only keys whose rights are within its own; the root admin key has all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapters.db import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from gateway import keyfiles, store
from gateway.errors import Forbidden
from gateway.store import ApiKey, Grant, Page
from gateway.tokens import ID_LENGTH, ROOT_ID, digest, mint, parse, verify
from gateway.v1.snapshot import Credential, Key, Limits

# gateway.admin takes the shared types from here, because it may not import gateway.v1.
__all__ = [
    "SCOPES",
    "ApiKey",
    "Grant",
    "Issued",
    "Key",
    "KeyService",
    "Limits",
    "digest",
    "mint",
    "parse",
    "verify",
]

SCOPES = frozenset({"inference", "feedback", "training", "admin"})
DEFAULT_GRACE_S = 3600.0  # long enough to roll a fleet, short enough for a leak
MAX_GRACE_S = 30 * 86_400.0
MAX_NAME = 128  # characters


@dataclass(frozen=True, slots=True)
class Issued:
    """A key with its token: the only time that the token can be seen."""

    key: ApiKey
    token: str = field(repr=False)


async def _unchanged() -> None:
    """Nobody wants to know about changes."""


class KeyService:
    """clock: unix seconds. random_bytes: cryptographic. changed: awaited after every write, before the answer, so
    that a key works (or no longer works) on this gateway when its operator reads the reply."""

    def __init__(
        self,
        db: Database,
        *,
        pepper: bytes,
        admin_token: bytes,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        changed: Callable[[], Awaitable[None]] = _unchanged,
    ) -> None:
        self.pepper = pepper
        self.root = Key(ROOT_ID, (Credential(digest(pepper, admin_token)),), scopes=SCOPES)
        self._db = db
        self._clock = clock
        self._random_bytes = random_bytes
        self._changed = changed

    @classmethod
    async def open(
        cls,
        db: Database,
        data_dir: Path,
        *,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        changed: Callable[[], Awaitable[None]] = _unchanged,
    ) -> KeyService:
        """Read the data directory's secrets, making them at the first start; SecretFileError."""
        keys_exist = await db.read(store.any_key)
        pepper = keyfiles.pepper(data_dir, random_bytes, keys_exist=keys_exist)
        admin_token = keyfiles.admin_key(data_dir, random_bytes)
        return cls(db, pepper=pepper, admin_token=admin_token, clock=clock, random_bytes=random_bytes, changed=changed)

    async def create(self, grant: Grant, by: Key) -> Issued:
        """Mint a key; InvalidRequest, Forbidden where the grant exceeds `by`'s rights."""
        now = self._clock()
        self._check(grant, by, now)
        minted = mint(self._random_bytes)
        key = ApiKey(minted.id, grant, digest(self.pepper, minted.token.encode("ascii")), created_at=now)
        await self._db.write(lambda conn: store.add_key(conn, key))
        await self._changed()
        return Issued(key, minted.token)

    async def list(self, after: str | None, limit: int) -> Page[ApiKey]:
        """Oldest first, revoked ones included; NotFound where `after` is no key's id."""
        last = None
        if after is not None:
            last = await self.show(after)
        return await self._db.read(lambda conn: store.list_keys(conn, after=last, limit=limit))

    async def show(self, key_id: str) -> ApiKey:
        """One key; NotFound."""
        _plausible(key_id)
        return _found(await self._db.read(lambda conn: store.get_key(conn, key_id)))

    async def update(self, key_id: str, change: Callable[[Grant], Grant], by: Key) -> ApiKey:
        """Change what a key may do; NotFound, Conflict where it is revoked, InvalidRequest, Forbidden."""
        now = self._clock()

        def changed(key: ApiKey) -> ApiKey:
            grant = change(key.grant)
            self._check(grant, by, now, unchanged_expiry=key.grant.expires_at)
            return replace(key, grant=grant)

        return await self._change(key_id, by, changed)

    async def rotate(self, key_id: str, grace_s: float, by: Key) -> Issued:
        """Give a key a new token; the one before stays good for `grace_s` seconds, any older one ends now."""
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidRequest(f"`grace_s` must be from 0 to {MAX_GRACE_S:.0f} seconds.", param="grace_s")
        until = self._clock() + grace_s
        tokens = []

        def changed(key: ApiKey) -> ApiKey:
            tokens.append(mint(self._random_bytes, key.id).token)
            fresh = digest(self.pepper, tokens[-1].encode("ascii"))
            return replace(key, digest=fresh, previous_digest=key.digest, previous_valid_until=until)

        key = await self._change(key_id, by, changed)
        return Issued(key, tokens[-1])

    async def revoke(self, key_id: str, by: Key) -> ApiKey:
        """End a key for good. Revoking twice is no error: the first time stands; NotFound, Forbidden."""
        now = self._clock()

        def changed(key: ApiKey) -> ApiKey:
            return key if key.revoked_at is not None else replace(key, revoked_at=now)

        return await self._change(key_id, by, changed, revoked_too=True)

    async def _change(
        self, key_id: str, by: Key, change: Callable[[ApiKey], ApiKey], *, revoked_too: bool = False
    ) -> ApiKey:
        def checked(found: ApiKey | None) -> ApiKey:
            key = _found(found)
            _within(key.grant, by)
            if key.revoked_at is not None and not revoked_too:
                raise Conflict(f"The key {key.id} is revoked, which is for good. Create a new one.")
            return change(key)

        _plausible(key_id)
        changed = await self._db.write(lambda conn: store.change_key(conn, key_id, checked))
        await self._changed()
        return changed

    def _check(self, grant: Grant, by: Key, now: float, unchanged_expiry: float | None = None) -> None:
        if not grant.name or len(grant.name) > MAX_NAME or not grant.name.isprintable():
            raise InvalidRequest(f"A key's name is 1 to {MAX_NAME} printable characters.", param="name")
        if not grant.scopes or grant.scopes - SCOPES:
            raise InvalidRequest(f"`scopes` takes one or more of {', '.join(sorted(SCOPES))}.", param="scopes")
        if grant.models is not None and not grant.models:
            raise InvalidRequest("`models` must name at least one model; leave it out to allow all.", param="models")
        if grant.expires_at is not None and grant.expires_at != unchanged_expiry and grant.expires_at <= now:
            raise InvalidRequest("`expires_at` lies in the past. Give a later time.", param="expires_at")
        _within(grant, by)


def _plausible(key_id: str) -> None:
    """Only what may be an id is looked up: a NUL, for one, is an error to PostgreSQL."""
    if len(key_id) != ID_LENGTH or not (key_id.isascii() and key_id.isalnum()):
        _found(None)


def _found(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise NotFound("There is no key with this id. `loragate keys list` shows them.")
    return key


def _within(grant: Grant, by: Key) -> None:
    """Forbidden unless everything that `grant` allows is allowed to `by`."""
    excess = grant.scopes - by.scopes
    if excess:
        raise Forbidden(
            f"Your key lacks the scope {', '.join(sorted(excess))}, so it cannot grant it or touch a key that has it. "
            "Use the admin key in the gateway's data directory.",
            param="scopes",
        )
    if by.models is not None and (grant.models is None or not grant.models <= by.models):
        raise Forbidden(
            "Your key may use some models only, so it can handle only keys limited to those. Name them in `models`.",
            param="models",
        )
    if by.expires_at is not None and (grant.expires_at is None or grant.expires_at > by.expires_at):
        raise Forbidden(
            "Your key expires, so it can handle only keys that expire no later. Give an earlier `expires_at`.",
            param="expires_at",
        )
