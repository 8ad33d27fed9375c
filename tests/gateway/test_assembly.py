"""From rows to the next snapshot: what it holds, and that what did not change is the same object as before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import sqlalchemy as sa

from adapters import store as adapter_store
from adapters.db import Database
from adapters.types import Canary, Rules, Version, VersionState
from gateway import store
from gateway.assembly import assemble
from gateway.store import ApiKey, Grant
from gateway.v1.snapshot import EMPTY, Credential, Limits, Snapshot

BASE = "/models/demo-base"
LIVE = ("a", "ft:demo:x::1")


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    opened = Database.open(database_url)
    yield opened
    opened.close()


@pytest.fixture
async def filled(db: Database) -> Database:
    def write(conn: sa.Connection) -> None:
        for n in range(3):
            store.add_key(conn, ApiKey(f"{n:012d}", Grant(f"key {n}", frozenset({"inference"})), bytes([n] * 32), 1.0))
        for number, name in enumerate((*LIVE, "stored")):
            version = _version(name, number)
            adapter_store.add(conn, version)
            if name in LIVE:
                adapter_store.point(conn, name, version.version, 1.0, "promoted", by="operator")
        adapter_store.add(conn, _version("other", 9, base="another"))

    await db.write(write)
    return db


def _version(name: str, number: int, base: str | None = BASE) -> Version:
    digest = f"{number:064x}"[::-1]
    engine_name = f"{name.replace(':', '-')}@{digest[:12]}"
    return Version(name, digest[:12], digest, engine_name, base, 8, 100, "s", "", 1000.5, VersionState.READY)


async def _assemble(
    db: Database, before: Snapshot = EMPTY, base: str | None = BASE, limits: Mapping[str, Limits] | None = None
) -> Snapshot:
    return await db.read(lambda conn: assemble(conn, before, base, limits or {}, 2.0))


async def test_everything_that_can_answer_is_there(filled: Database) -> None:
    ceilings = {"a": Limits(rpm=5), "demo-base": Limits(tpm=7)}
    snapshot = await _assemble(filled, limits=ceilings)
    assert (snapshot.serial, snapshot.base) == (1, "demo-base")
    assert set(snapshot.models) == {"demo-base", *LIVE}
    assert set(snapshot.versions) == {f"{name}@{n}00000000000" for n, name in enumerate((*LIVE, "stored"))}
    assert snapshot.models["demo-base"].engine_name == BASE
    assert snapshot.models["ft:demo:x::1"].engine_name == "ft-demo-x--1@100000000000"
    assert snapshot.models["a"] is snapshot.versions["a@000000000000"]
    assert (snapshot.models["a"].limits, snapshot.models["demo-base"].limits) == (Limits(rpm=5), Limits(tpm=7))
    assert snapshot.models["a"].created == 1000
    assert set(snapshot.keys) == {f"{n:012d}" for n in range(3)}


async def test_until_an_engine_has_said_its_base_there_are_keys_and_no_models(filled: Database) -> None:
    first = await _assemble(filled, base=None)
    assert (first.base, len(first.keys), first.models, first.versions) == (None, 3, {}, {})
    second = await _assemble(filled, first)
    assert second.serial == 2
    assert second.keys is first.keys


async def test_what_did_not_change_is_the_same_object(filled: Database) -> None:
    before = await _assemble(filled)

    def change(conn: sa.Connection) -> None:
        store.change_key(conn, f"{0:012d}", lambda key: replace(_there(key), revoked_at=1.0))
        store.change_key(
            conn, f"{1:012d}", lambda key: replace(_there(key), previous_digest=b"p" * 32, previous_valid_until=9.0)
        )

    await filled.write(change)
    after = await _assemble(filled, before)
    assert set(after.keys) == {f"{1:012d}", f"{2:012d}"}
    assert after.keys[f"{2:012d}"] is before.keys[f"{2:012d}"]
    assert after.keys[f"{1:012d}"].credentials == (Credential(b"\x01" * 32), Credential(b"p" * 32, 9.0))
    assert after.models is before.models
    assert after.versions is before.versions

    await filled.write(lambda conn: adapter_store.point(conn, "stored", "200000000000", 3.0, "promoted", by="operator"))
    last = await _assemble(filled, after)
    assert last.keys is after.keys
    assert last.versions is after.versions
    assert last.models.keys() - after.models.keys() == {"stored"}
    assert all(last.models[name] is target for name, target in after.models.items())


async def test_a_removed_version_and_changed_limits_are_seen(filled: Database) -> None:
    before = await _assemble(filled)
    await filled.write(lambda conn: adapter_store.remove(conn, "a", None, 2.0))
    after = await _assemble(filled, before, limits={"stored": Limits(concurrency=1)})
    assert set(after.models) == {"demo-base", "ft:demo:x::1"}
    assert set(after.versions) == {"ft:demo:x::1@100000000000", "stored@200000000000"}
    assert after.versions["stored@200000000000"].limits == Limits(concurrency=1)


async def test_a_canary_is_the_public_names_alone(filled: Database) -> None:
    before = await _assemble(filled)

    def begin(conn: sa.Connection, percent: float = 10) -> None:
        version = replace(_version("a", 7), created_at=1.0)
        adapter_store.add(conn, version)
        canary = Canary(version.version, percent, 1.0, Rules())
        adapter_store.set_canary(conn, "a", canary, 1.0, by="operator")

    await filled.write(begin)
    after = await _assemble(filled, before)
    split = after.models["a"]
    assert split.canary is after.versions["a@700000000000"]
    assert (split.engine_name, split.canary_percent) == (before.models["a"].engine_name, 10)
    assert dict(after.canaries) == {"a": split}
    assert all(target.canary is None for target in after.versions.values())
    again = await _assemble(filled, after)
    assert again.models is after.models
    await filled.write(lambda conn: begin(conn, 20))
    grown = await _assemble(filled, again)
    assert (grown.models["a"].canary, grown.models["a"].canary_percent) == (split.canary, 20)
    await filled.write(lambda conn: adapter_store.end_canary(conn, "a", 2.0, by="operator"))
    ended = await _assemble(filled, grown)
    assert ended.models == before.models
    assert not ended.canaries


def _there(key: ApiKey | None) -> ApiKey:
    assert key is not None
    return key


async def test_an_adapter_never_answers_to_the_name_of_the_base(db: Database) -> None:
    version = _version("demo-base", 1, base=None)  # registered before an engine had said its base

    def write(conn: sa.Connection) -> None:
        adapter_store.add(conn, version)
        adapter_store.point(conn, version.name, version.version, 1.0, "promoted", by="operator")

    await db.write(write)
    snapshot = await _assemble(db)
    assert snapshot.models["demo-base"].version is None
    assert list(snapshot.versions) == [version.engine_name]
