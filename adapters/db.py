"""The database brick of all rooms: short transactions on threads, errors in our own words.

SQLite (WAL, synchronous=FULL: an acknowledged write survives power loss) or PostgreSQL through psycopg.
Must not know any table; the schema is brought up to date by adapters/migrate.py.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError

from adapters import migrate, postgresql
from adapters.errors import DatabaseUnusable, RegistryBusy, ServiceError, StorageFull
from adapters.postgresql import CLOSE_S, READ_S, WRITE_S, Sessions

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
READERS = 4  # threads, and connections of the pool beside the writer's
_BUSY, _LOCKED, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _READONLY, _NOTADB = 5, 6, 10, 11, 13, 14, 8, 26
# PostgreSQL: serialisation, deadlock, lock, too slow, stood still, going down, not connected.
_RETRYABLE_STATES = ("40001", "40P01", "55P03", "57014", "25P03", "57P01", "08")


class Database:
    """Opened once, closed by whoever opened it. `read` and `write` run a function of a Connection on a thread."""

    def __init__(self, engine: sa.Engine, sessions: Sessions | None = None, read_s: float = READ_S) -> None:
        self._engine = engine
        self._sessions = sessions  # of PostgreSQL
        self._read_s = read_s
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        # One writer thread: writes of this process queue here instead of meeting SQLite's busy timeout.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="db-write")
        self._file = engine.url.database if engine.dialect.name == "sqlite" else None
        self._identity = _identity(self._file)
        self._looker: sqlite3.Connection | None = None

    @classmethod
    def open(cls, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S, read_s: float = READ_S) -> Database:
        """Connect to `url` (sqlite:///FILE or postgresql://…); the schema is not looked at. DatabaseUnusable.

        `busy_timeout_s`: how long SQLite waits for another process's lock before it is RegistryBusy;
        `read_s`: how long PostgreSQL may take for an answer.
        """
        try:
            parsed = sa.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.get_backend_name() == "sqlite":
                return cls(_sqlite(parsed, busy_timeout_s))
            sessions = Sessions(parsed, READERS + 1)
            return cls(sessions.engine, sessions, read_s)
        except (sa.exc.ArgumentError, NoSuchModuleError):
            raise DatabaseUnusable(
                "database_url is not a database address. Use sqlite:////path/file.db or postgresql://user@host/name."
            ) from None
        except ModuleNotFoundError:
            raise DatabaseUnusable(
                "PostgreSQL needs its driver: install loragate with the extra `postgres`, or leave database_url out."
            ) from None

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` on a snapshot of the database; RegistryBusy, StorageFull, DatabaseUnusable."""
        future = asyncio.get_running_loop().run_in_executor(self._readers, self._transact, work, False)
        return await self._within(self._read_s, future, "The database does not answer now. Try again in a moment.")

    async def write(self, work: Callable[[sa.Connection], T], *, aside: bool = False, endless: bool = False) -> T:
        """Run `work` in one transaction: committed whole when it returns, rolled back whole when it raises.

        A cancelled caller does not undo a transaction that has begun. aside: not behind other writes, on PostgreSQL;
        endless: until it is known whether it was done, however long that takes.
        """
        executor = self._readers if aside and self.shared else self._writer
        future = asyncio.get_running_loop().run_in_executor(executor, self._transact, work, True)
        if endless:
            return await future
        unknown = "The database does not answer, and it is not known whether this was done. Look again, then decide."
        return await self._within(WRITE_S, future, unknown)

    async def _within(self, longest_s: float, future: asyncio.Future[T], otherwise: str) -> T:
        """SQLite bounds its waits by itself. Where PostgreSQL stands still, the thread stays with it."""
        if not self.shared:
            return await future
        try:
            async with asyncio.timeout(longest_s):
                return await future
        except TimeoutError:
            raise RegistryBusy(otherwise, retry_after_s=2) from None

    @property
    def shared(self) -> bool:
        """Whether other gateways may be on it too: SQLite is for one."""
        return self._file is None

    async def look(self, sql: str) -> Any:
        """The one value of `sql`, outside any transaction: for what is asked twice a second.

        On SQLite by a connection of its own, on the loop: 5 µs (95 with cold caches), where `read` with its thread,
        pool and BEGIN takes 180 (1,300) that everything in flight waits for. It never waits for a lock.
        """
        if self._file is not None:
            try:
                if self._looker is None:
                    self._looker = sqlite3.connect(self._file, timeout=0, isolation_level=None, check_same_thread=False)
                if _identity(self._file) == self._identity:
                    return self._looker.execute(sql).fetchall()[0][0]
            except sqlite3.Error:
                pass  # asked again below, which says in our words what is wrong
        return await self.read(lambda conn: conn.exec_driver_sql(sql).scalar_one())

    def migrate(self) -> None:
        """Bring the schema up to date (blocking; at start, before anything reads). DatabaseUnusable, RegistryBusy."""
        try:
            current = self._transact(migrate.is_current, False)
        except RegistryBusy as exc:
            if self._sessions is None:
                raise
            where = postgresql.address(self._engine.url)
            raise RegistryBusy(f"PostgreSQL at {where} does not answer. Start it, or correct database_url.") from exc
        if not current and not self._transact(migrate.made, True):
            self._transact(migrate.prepared(), True)

    def close(self) -> None:
        """Wait for what is running, where PostgreSQL answers, and disconnect."""
        hurry = threading.Timer(CLOSE_S, self._sessions.cut) if self._sessions is not None else None
        if hurry is not None:
            hurry.start()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
        if hurry is not None:
            hurry.cancel()
        if self._looker is not None:
            self._looker.close()
        self._engine.dispose()

    def _transact(self, work: Callable[[sa.Connection], T], immediate: bool) -> T:
        if _identity(self._file) != self._identity:
            # SQLite would go on with the file that has no name any more: what is acknowledged now would be gone.
            raise DatabaseUnusable(
                f"The database {self._file} was replaced or deleted while this gateway ran; nothing was changed. "
                "Restart the gateway to use the file that is there now, or put the old one back."
            )
        try:
            with self._engine.connect().execution_options(immediate=immediate) as conn, conn.begin():
                return work(conn)
        except DBAPIError as exc:
            raise _translated(exc) from exc


def _identity(file: str | None) -> tuple[int, int] | None:
    """Which file this is; None for none. One stat, 1 µs."""
    if file is None:
        return None
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sqlite(url: sa.URL, busy_timeout_s: float) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise DatabaseUnusable("An in-memory database would forget every adapter and key: name a file in database_url.")
    path = Path(url.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # it holds key digests
    except OSError as exc:
        raise DatabaseUnusable(
            f"The database {path} cannot be opened ({exc.strerror}). Make its folder writable or choose --data-dir."
        ) from None
    engine = sa.create_engine(url, pool_size=READERS + 1, max_overflow=0, connect_args={"timeout": busy_timeout_s})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3 would begin late, and never IMMEDIATE: _begin does it
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA cache_size=-512")  # KiB each: the default of 2 MiB in five connections shows
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch a new file to WAL; it stays so, and later connections change nothing here.

    The switch itself waits for nobody: while another process makes it, or writes, SQLite says BUSY at once.
    """
    for _ in range(100):  # each turn is another connection that was first: never more than start at once
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != _BUSY:
                raise
        cursor.execute("BEGIN IMMEDIATE")  # this waits, up to the busy timeout, until the other is done
        cursor.execute("COMMIT")
    cursor.execute("PRAGMA journal_mode=WAL")


def _begin(conn: sa.Connection) -> None:
    # A write takes its lock at once: a transaction that upgrades from read to write gets BUSY without waiting.
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("immediate") else "BEGIN")


def _translated(exc: DBAPIError) -> ServiceError:
    code = getattr(exc.orig, "sqlite_errorcode", None)
    state = getattr(exc.orig, "sqlstate", None)
    primary = code & 0xFF if code is not None else None
    if primary in (_FULL, _IOERR) or state == "53100":
        return StorageFull("The disk of the database is full or failing. Free space, then try again.")
    if primary in (_CORRUPT, _NOTADB):
        return DatabaseUnusable(
            "The database file is damaged; nothing was changed. "
            "Restore it from a backup, or move it away to begin anew."
        )
    if primary in (_CANTOPEN, _READONLY):
        return DatabaseUnusable("The database file cannot be written. Check who owns the data directory.")
    if primary in (_BUSY, _LOCKED):
        return RegistryBusy("The registry is busy with another write. Try again in a moment.", retry_after_s=1)
    unreachable = isinstance(exc, OperationalError) and code is None and state is None
    refusal = postgresql.refusal(str(exc.orig)) if unreachable else None
    if refusal is not None:
        return DatabaseUnusable(f"PostgreSQL refuses this gateway: {refusal}. Check database_url, then try again.")
    if unreachable or (state is not None and state.startswith(_RETRYABLE_STATES)):
        return RegistryBusy("The database does not answer now. Try again in a moment.", retry_after_s=2)
    return ServiceError("The database refused a statement; the log has the details.")
