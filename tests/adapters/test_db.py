"""The database brick: whole transactions, one winner of a migration, refusals that leave the file as it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters import migrate, revision, store
from adapters.db import Database
from adapters.errors import DatabaseUnusable, RegistryBusy, ServiceError, StorageFull
from adapters.schema import metadata
from tests.databases import Postgres

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "loragate.db"


@pytest.fixture
def either(database_url: str) -> Iterator[Database]:
    """SQLite, then PostgreSQL; `db` is always SQLite."""
    opened = Database.open(database_url)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql"))])
def nothing_url(request: pytest.FixtureRequest, path: Path) -> Iterator[str]:
    """The address of a database with nothing in it, of each kind."""
    if request.param == "sqlite":
        path.parent.mkdir()
        yield f"sqlite:///{path}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database(migrated=False) as url:
        yield url


def _do(url: str, *statements: str) -> list[Any]:
    """Statements as another program would make them; the rows of the last."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    with engine.begin() as conn:
        results = [conn.exec_driver_sql(statement) for statement in statements]
        return list(results[-1]) if results[-1].returns_rows else []


def _do_as_we_do(path: Path, statement: str) -> Any:
    """The one value of a statement on a connection that the brick made."""
    opened = Database.open(f"sqlite:///{path}")
    try:
        return opened._transact(lambda conn: conn.exec_driver_sql(statement).scalar(), False)
    finally:
        opened.close()


def _child(code: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_sqlite_is_opened_for_durability(db: Database) -> None:
    def pragmas(conn: sa.Connection) -> tuple[object, ...]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return tuple(conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names)

    assert await db.read(pragmas) == ("wal", 2, 1, 5000)


def test_a_new_file_that_another_process_is_about_to_switch_is_waited_for(path: Path) -> None:
    """SQLite itself does not: of five first starts at once on a loaded machine, four said that it is locked."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE theirs (x integer)")
        other.execute("BEGIN IMMEDIATE")
        done = threading.Timer(0.1, other.execute, ("COMMIT",))
        done.start()
        assert _do_as_we_do(path, "PRAGMA journal_mode") == "wal"
        done.join()


def test_a_new_database_is_for_its_owner_alone(path: Path) -> None:
    Database.open(f"sqlite:///{path}").close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_failed_write_leaves_nothing(either: Database) -> None:
    def broken(conn: sa.Connection) -> None:
        revision.bump(conn)
        raise ValueError("after the first statement")

    with pytest.raises(ValueError, match="after the first"):
        await either.write(broken)
    assert await revision.current(either) == 0


async def test_fifty_writers_of_two_processes_lose_no_update(either: Database, database_url: str) -> None:
    other = Database.open(database_url)  # with a writer thread and connections of its own, like another process
    try:
        await asyncio.gather(*(each.write(revision.bump) for _ in range(25) for each in (either, other)))
    finally:
        other.close()
    assert await revision.current(either) == 50


async def test_a_lock_held_by_another_process_is_registry_busy(db: Database, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    impatient = Database.open(f"sqlite:///{path}", busy_timeout_s=0.05)
    with pytest.raises(RegistryBusy) as caught:
        await impatient.write(revision.bump)
    assert caught.value.retry_after_s == 1
    assert await revision.current(impatient) == 0  # readers go on
    other.execute("ROLLBACK")
    other.close()
    await impatient.write(revision.bump)
    impatient.close()
    assert await revision.current(db) == 1


async def test_a_look_sees_every_commit_at_once_and_holds_nothing(either: Database, database_url: str) -> None:
    other = Database.open(database_url)
    for expected in range(1, 21):
        await (either if expected % 2 else other).write(revision.bump)
        assert await revision.current(either) == expected
    other.close()
    if database_url.startswith("sqlite"):  # an unfinished look would keep the log from being folded back
        [[busy, _, _]] = _do(database_url, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert busy == 0


async def test_a_look_that_cannot_be_had_says_why(db: Database, path: Path) -> None:
    assert await revision.current(db) == 0
    _do(f"sqlite:///{path}", "DROP TABLE revision")
    with pytest.raises(ServiceError, match="The database refused a statement"):
        await revision.current(db)


async def test_a_full_disk_is_storage_full_and_leaves_the_registry_as_it_was(db: Database) -> None:
    def fill(conn: sa.Connection) -> None:
        revision.bump(conn)
        conn.exec_driver_sql("PRAGMA max_page_count=1")  # SQLite's own stand-in for a full disk
        for number in range(1000):
            conn.execute(sa.insert(store.adapters).values(name=f"{number:0500}", created_at=0.0, updated_at=0.0))

    with pytest.raises(StorageFull):
        await db.write(fill)
    assert await revision.current(db) == 0


def test_head_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "adapters" / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


async def test_migrations_make_the_tables_that_the_code_declares(either: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(conn: sa.Connection) -> list[object]:
        ours = {table.name for table in metadata.tables.values()}
        context = MigrationContext.configure(
            conn, opts={"include_name": lambda name, kind, _parents: kind != "table" or name in ours}
        )
        return list(compare_metadata(context, metadata))

    assert {store.adapters.name, revision.revision.name} <= set(metadata.tables)
    assert await either.read(differences) == []


def test_a_new_sqlite_file_is_what_the_migrations_make(path: Path) -> None:
    by_alembic, fresh = f"sqlite:///{path}.alembic", f"sqlite:///{path}"
    slow = Database.open(by_alembic)
    slow._transact(migrate.prepared(), True)
    slow.close()
    quick = Database.open(fresh)
    quick.migrate()
    quick.close()
    schema = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
    wanted = [re.sub(r"\s+", " ", row[0]) for row in _do(by_alembic, schema)]
    assert [re.sub(r"\s+", " ", row[0]) for row in _do(fresh, schema)] == wanted, (
        "bring migrations/fresh.sql up to date"
    )
    for table in metadata.tables:
        assert _do(fresh, f"SELECT * FROM {table}") == _do(by_alembic, f"SELECT * FROM {table}")
    assert _do(fresh, "SELECT version_num FROM alembic_version") == [(migrate.HEAD,)]


@pytest.mark.parametrize("nothing_url", ["sqlite"], indirect=True)
def test_the_first_start_does_not_import_alembic_either(nothing_url: str) -> None:
    test_a_second_start_does_not_import_alembic(nothing_url)
    assert _do(nothing_url, "SELECT n FROM revision") == [(0,)]


def test_a_second_start_does_not_import_alembic(database_url: str) -> None:
    code = (
        "import sys; from adapters.db import Database; db = Database.open(sys.argv[1]); db.migrate(); db.close();"
        "sys.exit(any(m.startswith('alembic') for m in sys.modules))"
    )
    child = _child(code, database_url)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err


FIVE = """
import os, sys
from adapters.db import Database
import alembic.command  # once, before the fork: five imports took ten times as long as five migrations

start, go = os.pipe()
pids = []
for _ in range(5):
    pids.append(os.fork())
    if pids[-1] == 0:
        os.close(go)
        os.read(start, 1)  # returns when the parent lets go
        db = Database.open(sys.argv[1])
        db.migrate()
        db.close()
        os._exit(0)
os.close(go)
sys.exit(any([os.waitpid(pid, 0)[1] for pid in pids]))
"""


def test_five_processes_migrate_at_once_and_all_start(nothing_url: str) -> None:
    child = _child(FIVE, nothing_url)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert _do(nothing_url, "SELECT version_num FROM alembic_version") == [(migrate.HEAD,)]


def _refusal(url: str) -> str:
    again = Database.open(url)
    try:
        with pytest.raises(DatabaseUnusable) as caught:
            again.migrate()
    finally:
        again.close()
    return caught.value.message


def test_a_newer_schema_is_refused_and_kept(database_url: str) -> None:
    _do(database_url, "UPDATE alembic_version SET version_num = '9999'")
    assert "newer loragate" in _refusal(database_url)
    assert _do(database_url, "SELECT version_num FROM alembic_version") == [("9999",)]


def test_another_programs_database_is_refused(nothing_url: str) -> None:
    _do(nothing_url, "CREATE TABLE theirs (x integer)")
    assert "another program" in _refusal(nothing_url)


@pytest.mark.parametrize("how", ["not a database", "flipped page"])
def test_a_damaged_file_is_refused_and_kept(path: Path, how: str) -> None:
    first = Database.open(f"sqlite:///{path}")
    first.migrate()
    first.close()  # the last connection: nothing is left in the WAL
    content = bytearray(path.read_bytes())
    if how == "not a database":
        content[:16] = b"not a database!!"
    else:
        content[4096:8192] = bytes(255 - byte for byte in content[4096:8192])
    path.write_bytes(content)
    assert "damaged" in _refusal(f"sqlite:///{path}")
    assert path.read_bytes() == bytes(content)


@pytest.mark.parametrize("url", ["nonsense", "oracle+nothing://x/y", "sqlite://", "sqlite:///:memory:"])
def test_an_address_that_cannot_work_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(DatabaseUnusable, match=r"\.$"):
        Database.open(url)


async def test_a_file_that_was_replaced_takes_no_writes_into_the_void(db: Database, path: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    shutil.copyfile(path, new)
    os.rename(path, old)
    for _ in range(2):  # deleted, then a backup in its place
        with pytest.raises(DatabaseUnusable, match="replaced or deleted"):
            await db.write(revision.bump)
        with pytest.raises(DatabaseUnusable, match="replaced or deleted"):
            await revision.current(db)
        shutil.copyfile(new, path)
    os.rename(old, path)
    await db.write(revision.bump)
    assert await revision.current(db) == 1


@pytest.fixture
def server_url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@contextlib.contextmanager
def _stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.xdist_group("postgresql")
async def test_a_server_that_takes_the_question_and_stands_still_is_busy(server_url: str) -> None:
    db = Database.open(server_url, read_s=0.2)
    process = int(await db.look("SELECT pg_backend_pid()"))
    with _stopped(process), pytest.raises(RegistryBusy, match="does not answer now"):
        await revision.current(db)
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(RegistryBusy):
                assert await revision.current(db) == 0
                break
    db.close()


@pytest.mark.xdist_group("postgresql")
async def test_nobody_waits_at_the_end_for_a_server_that_stands_still(server_url: str) -> None:
    db = Database.open(server_url, read_s=0.2)
    with _stopped(int(await db.look("SELECT pg_backend_pid()"))):
        with pytest.raises(RegistryBusy):
            await revision.current(db)
        await asyncio.to_thread(db.close)


@pytest.mark.xdist_group("postgresql")
async def test_what_another_holds_is_waited_for_a_while(server_url: str, postgres: Postgres) -> None:
    name = sa.make_url(server_url).database
    postgres.say(f"ALTER DATABASE {name} SET lock_timeout = '100ms'")
    db = Database.open(server_url)
    engine = sa.create_engine(server_url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    with engine.begin() as conn:
        conn.exec_driver_sql("SELECT n FROM revision FOR UPDATE")
        with pytest.raises(RegistryBusy):
            await db.write(revision.bump)
    await db.write(revision.bump)
    assert await revision.current(db) == 1
    bounds = {each: await db.look(f"SHOW {each}") for each in ("lock_timeout", "idle_in_transaction_session_timeout")}
    assert bounds == {"lock_timeout": "100ms", "idle_in_transaction_session_timeout": "10s"}
    db.close()


@pytest.mark.xdist_group("postgresql")
async def test_who_stands_still_in_the_middle_of_a_change_holds_nobody_up(server_url: str, postgres: Postgres) -> None:
    name = sa.make_url(server_url).database
    postgres.say(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '300ms'")
    one, two = Database.open(server_url), Database.open(server_url)
    begun, go_on = threading.Event(), threading.Event()

    def stands_still(conn: sa.Connection) -> None:
        revision.bump(conn)
        begun.set()
        assert go_on.wait(30)
        revision.bump(conn)

    changing = asyncio.create_task(one.write(stands_still))
    await asyncio.to_thread(begun.wait)
    await two.write(revision.bump)
    go_on.set()
    with pytest.raises(RegistryBusy):
        await changing
    assert await revision.current(one) == 1
    one.close()
    two.close()


@pytest.mark.xdist_group("postgresql")
@pytest.mark.parametrize("change", [{"database": "nowhere"}, {"username": "nobody"}])
def test_a_server_that_will_not_have_us_is_not_said_to_be_silent(server_url: str, change: dict[str, str]) -> None:
    url = sa.make_url(server_url).set(**change)  # type: ignore[arg-type]
    assert _refusal(url.render_as_string(hide_password=False)) == (
        "PostgreSQL refuses this gateway: it has no such database or user. Check database_url, then try again."
    )


@pytest.mark.parametrize(
    ("url", "where"),
    [("postgresql://x@127.0.0.1:1/y", "127.0.0.1:1"), ("postgresql://x@/y?host=/nowhere", "/nowhere")],
)
def test_a_server_that_is_not_there_is_named(url: str, where: str) -> None:
    db = Database.open(url)
    with pytest.raises(RegistryBusy, match=re.escape(f"PostgreSQL at {where} does not answer.")):
        db.migrate()
    db.close()
