"""Real databases for tests: an empty SQLite file with the newest schema, and a private PostgreSQL.

Migrations run once per process, not once per test: SQLite's result is kept as bytes, PostgreSQL's as a template.
"""

from __future__ import annotations

import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters.db import Database

QUICK = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB")  # nothing here has to survive a power cut


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loragate.db"
        _migrate(f"sqlite:///{path}")
        return path.read_bytes()


def _migrate(url: str) -> None:
    database = Database.open(url)
    try:
        database.migrate()
    finally:
        database.close()


def sqlite(path: Path) -> str:
    """The address of a new SQLite file at `path`, migrated, empty and for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(_migrated())
    return f"sqlite:///{path}"


def postgres_binaries() -> Path | None:
    """Where initdb and pg_ctl are: the newest that Debian installed, else the first on PATH."""
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if debian:
        return max(debian, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@dataclass(frozen=True)
class Postgres:
    """A running cluster of our own, reached through a socket in `folder`; no port is opened."""

    folder: Path
    server: sa.Engine
    numbers: Iterator[int]
    copying: str = ""  # from version 15 on: files are copied, in half the time of pages through the log

    def url(self, name: str) -> str:
        return f"postgresql://tests@/{name}?host={self.folder}"

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The address of a new database for the block: with the newest schema, or with nothing in it."""
        name = f"test_{next(self.numbers)}"
        self.say(f"CREATE DATABASE {name} TEMPLATE {'migrated' if migrated else 'template0'} {self.copying}")
        try:
            yield self.url(name)
        finally:
            self.say(f"DROP DATABASE {name} WITH (FORCE)")

    def say(self, statement: str) -> None:
        """One statement to the server itself, outside any test's database."""
        with self.server.connect() as conn:
            conn.exec_driver_sql(statement)


@contextmanager
def postgres(binaries: Path) -> Iterator[Postgres]:
    """Make and start a cluster for the block, with the database `migrated` as a template."""
    with tempfile.TemporaryDirectory(prefix="loragate-pg-") as made:
        folder = Path(made)
        data, identity = str(folder / "data"), _identity(folder)
        # Not the C order: what we sort must come out in our order whatever the database's own is.
        locale = ("--locale=C", "--encoding=UTF8", *_icu(binaries))
        initdb = [str(binaries / "initdb"), "-D", data, "-U", "tests", "-A", "trust", "--no-sync", *locale]
        subprocess.run(initdb, check=True, cwd=folder, timeout=60, stdout=subprocess.DEVNULL, **identity)
        options = [word for setting in QUICK for word in ("-c", setting)]
        command = [str(binaries / "postgres"), "-D", data, "-k", made, "-c", "listen_addresses=", *options]
        server = sa.create_engine(
            f"postgresql+psycopg://tests@/postgres?host={folder}", isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **identity)
        try:
            cluster = Postgres(folder, server, itertools.count())
            _until_ready(cluster, process)
            cluster.say("CREATE DATABASE migrated")
            _migrate(cluster.url("migrated"))
            version = server.dialect.server_version_info or (0,)
            yield replace(cluster, copying="STRATEGY file_copy") if version >= (15,) else cluster
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing is kept
            process.wait(60)


def _until_ready(cluster: Postgres, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):  # a minute
        if process.poll() is not None:
            break
        try:
            return cluster.say("SELECT 1")
        except sa.exc.OperationalError:
            time.sleep(0.02)
    raise AssertionError((cluster.folder / "log").read_text())


def _identity(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then `folder` is given to its own user, and its processes are theirs."""
    if os.getuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _icu(binaries: Path) -> tuple[str, ...]:
    said = subprocess.run([str(binaries / "initdb"), "--help"], check=True, capture_output=True, text=True).stdout
    return ("--locale-provider=icu", "--icu-locale=en-US") if "--icu-locale" in said else ()
