"""What Alembic runs: the migrations over the connection, and inside the transaction, that adapters/db.py hands in."""

from __future__ import annotations

from alembic import context

from adapters.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite can, and adapters/db.py holds the write lock around it
)
context.run_migrations()
