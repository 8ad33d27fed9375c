"""KeyService over both databases: who may grant what, rotation, revocation, and where secrets are not."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters import revision
from adapters.db import Database
from adapters.errors import Conflict, InvalidRequest, NotFound
from gateway import store
from gateway.errors import Forbidden
from gateway.keys import MAX_GRACE_S, SCOPES, ApiKey, Grant, Key, KeyService, verify
from gateway.v1.snapshot import NO_LIMITS, Limits

INFERENCE = Grant("app", frozenset({"inference"}))


@dataclass
class Room:
    """The service with a clock that the test moves, and how often it said that keys changed."""

    db: Database
    home: Path
    now: list[float] = field(default_factory=lambda: [1_800_000_000.0])
    changes: list[int] = field(default_factory=lambda: [0])

    async def open(self) -> KeyService:
        return await KeyService.open(
            self.db, self.home, clock=lambda: self.now[0], random_bytes=os.urandom, changed=self._changed
        )

    async def _changed(self) -> None:
        self.changes[0] += 1

    async def live(self) -> dict[str, Key]:
        return await self.db.read(lambda conn: {key.id: key for key in store.live_keys(conn, self.now[0])})

    async def revision(self) -> int:
        return await revision.current(self.db)


@pytest.fixture
async def room(tmp_path: Path, database_url: str) -> AsyncIterator[Room]:
    db = Database.open(database_url)
    try:
        yield Room(db, tmp_path)
    finally:
        db.close()


@pytest.fixture
async def keys(room: Room) -> KeyService:
    return await room.open()


async def admin(room: Room, keys: KeyService, **rights: object) -> Key:
    """A key made by root, as the guard sees it."""
    grant = replace(Grant("boss", frozenset({"admin", "inference"})), **rights)  # type: ignore[arg-type]
    made = await keys.create(grant, keys.root)
    return (await room.live())[made.key.id]


async def test_a_created_key_opens_and_survives_a_restart(room: Room, keys: KeyService) -> None:
    limits = Limits(rpm=60, tpm=10_000, concurrency=4, daily_tokens=10**12)
    grant = Grant("app", frozenset({"inference"}), frozenset({"customer-service"}), limits, room.now[0] + 60)
    made = await keys.create(grant, keys.root)
    again = await room.open()
    found = verify(made.token.encode(), await room.live(), again.pepper, room.now[0])
    assert found is not None
    assert (found.id, found.scopes, found.models) == (made.key.id, grant.scopes, grant.models)
    assert (found.limits, found.expires_at) == (limits, grant.expires_at)
    assert await again.show(made.key.id) == made.key
    assert again.root.credentials == keys.root.credentials


@pytest.mark.parametrize(
    ("grant", "param"),
    [
        (replace(INFERENCE, name=""), "name"),
        (replace(INFERENCE, name="a\n{}"), "name"),
        (replace(INFERENCE, name="x" * 129), "name"),
        (replace(INFERENCE, scopes=frozenset()), "scopes"),
        (replace(INFERENCE, scopes=frozenset({"inference", "root"})), "scopes"),
        (replace(INFERENCE, models=frozenset()), "models"),
        (replace(INFERENCE, expires_at=1.0), "expires_at"),
    ],
)
async def test_what_is_not_a_grant_is_refused(room: Room, keys: KeyService, grant: Grant, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await keys.create(grant, keys.root)
    assert caught.value.param == param
    assert await room.live() == {}


async def test_every_change_bumps_the_revision_and_says_so(room: Room, keys: KeyService) -> None:
    made = await keys.create(INFERENCE, keys.root)
    await keys.update(made.key.id, lambda grant: replace(grant, name="other"), keys.root)
    await keys.rotate(made.key.id, 0, keys.root)
    await keys.revoke(made.key.id, keys.root)
    assert (await room.revision(), room.changes[0]) == (4, 4)


async def test_a_revoked_key_is_gone_from_the_snapshot_for_good(room: Room, keys: KeyService) -> None:
    made = await keys.create(INFERENCE, keys.root)
    first = await keys.revoke(made.key.id, keys.root)
    room.now[0] += 5
    assert await keys.revoke(made.key.id, keys.root) == first, "the first time stands"
    assert await room.live() == {}
    with pytest.raises(Conflict):
        await keys.rotate(made.key.id, 60, keys.root)
    with pytest.raises(Conflict):
        await keys.update(made.key.id, lambda grant: grant, keys.root)


async def test_rotation_keeps_the_old_token_for_the_grace_only(room: Room, keys: KeyService) -> None:
    made = await keys.create(INFERENCE, keys.root)
    second = await keys.rotate(made.key.id, 60, keys.root)

    async def opens(token: str) -> bool:
        return verify(token.encode(), await room.live(), keys.pepper, room.now[0]) is not None

    assert second.key.id == made.key.id
    assert (await opens(made.token), await opens(second.token)) == (True, True)
    third = await keys.rotate(made.key.id, 60, keys.root)
    assert (await opens(made.token), await opens(second.token), await opens(third.token)) == (False, True, True)
    room.now[0] += 60
    assert (await opens(second.token), await opens(third.token)) == (False, True)
    for grace_s in (-1.0, MAX_GRACE_S + 1, float("nan")):
        with pytest.raises(InvalidRequest):
            await keys.rotate(made.key.id, grace_s, keys.root)


async def test_an_expired_key_may_still_be_changed(room: Room, keys: KeyService) -> None:
    made = await keys.create(replace(INFERENCE, expires_at=room.now[0] + 10), keys.root)
    room.now[0] += 20
    assert await room.live() == {}
    renamed = await keys.update(made.key.id, lambda grant: replace(grant, name="late"), keys.root)
    assert renamed.grant.name == "late"
    await keys.update(made.key.id, lambda grant: replace(grant, expires_at=None), keys.root)
    assert list(await room.live()) == [made.key.id]


async def test_pages_show_every_key_once(room: Room, keys: KeyService) -> None:
    made = []
    for number in range(5):
        made.append((await keys.create(replace(INFERENCE, name=f"k{number}"), keys.root)).key)
        room.now[0] += number % 2  # some at the same moment
    seen: list[str] = []
    more = True
    while more:
        page = await keys.list(seen[-1] if seen else None, 2)
        seen += [key.id for key in page.items]
        more = page.has_more
    assert sorted(seen) == sorted(key.id for key in made)
    with pytest.raises(NotFound):
        await keys.list("A" * 12, 2)


@pytest.mark.parametrize("key_id", ["", "x", "' OR 1=1 --", "\x00" * 12, "ключключключ", "A" * 12, "a" * 100_000])
async def test_ids_that_are_none_are_not_found(keys: KeyService, key_id: str) -> None:
    await keys.create(INFERENCE, keys.root)
    with pytest.raises(NotFound):
        await keys.show(key_id)
    with pytest.raises(NotFound):
        await keys.revoke(key_id, keys.root)


WIDER = [
    ({"scopes": frozenset({"admin"})}, INFERENCE, "scopes"),
    ({"models": frozenset({"a"})}, INFERENCE, "models"),
    ({"models": frozenset({"a"})}, replace(INFERENCE, models=frozenset({"a", "b"})), "models"),
    ({"expires_at": 1_800_000_100.0}, INFERENCE, "expires_at"),
    ({"expires_at": 1_800_000_100.0}, replace(INFERENCE, expires_at=1_800_000_101.0), "expires_at"),
]


@pytest.mark.parametrize(("rights", "grant", "param"), WIDER)
async def test_an_admin_key_cannot_reach_beyond_its_own_rights(
    room: Room, keys: KeyService, rights: dict[str, object], grant: Grant, param: str
) -> None:
    boss = await admin(room, keys, **rights)
    wider = await keys.create(grant, keys.root)
    changes = await room.revision()

    attempts: list[Callable[[], object]] = [
        lambda: keys.create(grant, boss),
        lambda: keys.update(boss.id, lambda _: grant, boss),
        lambda: keys.update(wider.key.id, lambda grant: replace(grant, name="mine"), boss),
        lambda: keys.rotate(wider.key.id, 0, boss),
        lambda: keys.revoke(wider.key.id, boss),
    ]
    for attempt in attempts:
        with pytest.raises(Forbidden) as caught:
            await attempt()  # type: ignore[misc]
        assert caught.value.param == param
    assert await room.revision() == changes, "a refused change leaves nothing behind"


async def test_an_admin_key_can_grant_what_it_has(room: Room, keys: KeyService) -> None:
    boss = await admin(room, keys, models=frozenset({"a", "b"}))
    made = await keys.create(replace(INFERENCE, models=frozenset({"a"})), boss)
    await keys.rotate(made.key.id, 0, boss)
    await keys.revoke(made.key.id, boss)


async def test_root_has_every_scope_and_is_not_in_the_database(room: Room, keys: KeyService) -> None:
    assert keys.root.scopes == SCOPES
    assert await room.live() == {}
    with pytest.raises(NotFound):
        await keys.show(keys.root.id)


async def test_no_secret_is_in_the_database_a_log_or_a_repr(
    room: Room, keys: KeyService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = await keys.create(INFERENCE, keys.root)
    turned = await keys.rotate(made.key.id, 60, keys.root)
    with pytest.raises(Forbidden):
        await keys.create(INFERENCE, replace(keys.root, scopes=frozenset()))
    rows = await room.db.read(lambda conn: repr(conn.execute(sa.select(store.api_keys)).all()).encode())
    room.db.close()
    files = [path.read_bytes() for path in room.home.iterdir() if path.name.startswith("loragate.db")]  # SQLite's
    kept = [rows, b"".join(files)] if files else [rows]
    assert all(made.key.id.encode() in each for each in kept), "what was searched is the right thing"
    on_disk = b"".join(kept)
    for token in (made.token, turned.token, (room.home / "admin.key").read_text().strip()):
        secret = token[16:59]
        assert secret.encode() not in on_disk
        assert secret not in caplog.text
        assert secret not in repr([made, turned, keys, keys.root])
    assert repr(made.key.digest) not in repr(made)


async def test_ten_thousand_plain_keys_share_what_is_equal(room: Room) -> None:
    limited = replace(INFERENCE, models=frozenset({"a", "b"}), limits=Limits(rpm=10))
    digest = bytes(32)

    def write(conn: sa.Connection) -> None:
        for n in range(100):
            store.add_key(conn, ApiKey(f"{n:012d}", INFERENCE if n % 2 else limited, digest, created_at=1.0))

    await room.db.write(write)
    live = (await room.live()).values()
    assert len(live) == 100
    assert len({id(key.scopes) for key in live}) == 1
    assert len({id(key.models) for key in live}) == 2
    assert len({id(key.limits) for key in live}) == 2
    assert all(key.limits is NO_LIMITS for key in live if key.models is None), "the hot path compares by identity"
