"""Brings the schema to this program's: one cheap query when it is there already, Alembic only to change an old one.

Alembic is 0.1 s of a start and 12 MB for as long as the process lives, so it is imported where it is needed: a new
SQLite file is made from fresh.sql, which a test holds equal to what the migrations make. Must not open connections
of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from adapters import postgresql
from adapters.errors import DatabaseUnusable

HEAD = "0004"  # the newest file in adapters/migrations/versions (a test compares)
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x10DA6A7E  # PostgreSQL's advisory lock of all loragate processes that migrate
_version = sa.table("alembic_version", sa.column("version_num", sa.Text))


def is_current(conn: sa.Connection) -> bool:
    """Whether the schema is this program's; raises DatabaseUnusable where SQLite finds its file damaged."""
    if conn.dialect.name == "sqlite":
        found = conn.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            raise DatabaseUnusable(
                "The database file is damaged; nothing was changed. "
                "Restore it from a backup, or move it away to begin anew."
            )
    return _stamped(conn) == HEAD


def made(conn: sa.Connection) -> bool:
    """Give an empty SQLite file the whole schema; False where there is something to migrate, or no SQLite."""
    if conn.dialect.name != "sqlite":
        return False
    stamped = _stamped(conn)
    if stamped is None:
        for statement in (_MIGRATIONS / "fresh.sql").read_text(encoding="utf-8").split(";\n"):
            if statement.strip():
                conn.exec_driver_sql(statement)
    return stamped in (None, HEAD)  # HEAD: another process was first


def prepared() -> Callable[[sa.Connection], None]:
    """Import Alembic and return `upgrade`: under load the import takes seconds, too long to hold the write lock."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}

    def upgrade(conn: sa.Connection) -> None:
        if conn.dialect.name == "postgresql":
            postgresql.without_end(conn)
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        stamped = _stamped(conn)
        if stamped == HEAD:
            return  # another process was first
        if stamped is not None and stamped not in known:
            raise DatabaseUnusable(
                f"The database was written by a newer loragate (schema {stamped}, this one knows {HEAD}). "
                "Start that version again, or restore a backup made before the upgrade."
            )
        config.attributes["connection"] = conn
        command.upgrade(config, "head")

    return upgrade


def _stamped(conn: sa.Connection) -> str | None:
    if not sa.inspect(conn).has_table("alembic_version"):
        if sa.inspect(conn).get_table_names():
            raise DatabaseUnusable("This database belongs to another program: its tables are not ours. Name another.")
        return None
    return conn.execute(sa.select(_version.c.version_num)).scalar()
