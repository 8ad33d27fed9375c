"""The tables of the first release: adapters and their versions, keys, usage, the revision counter.

Times are unix seconds. Downgrades are not offered: restore the backup instead.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _adapters()
    _keys()
    counter = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revision")),
    )
    op.bulk_insert(counter, [{"id": 1, "n": 0}])


def _adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("live", sa.Text),
        sa.Column("previous", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_adapters")),
    )
    op.create_table(
        "adapter_versions",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("engine_name", sa.Text, nullable=False),
        sa.Column("base", sa.Text),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("wish", sa.Text, nullable=False),
        sa.Column("damaged", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_adapter_versions")),
        sa.ForeignKeyConstraint(["name"], ["adapters.name"], name=op.f("fk_adapter_versions_name"), ondelete="CASCADE"),
    )
    op.create_index(op.f("ix_adapter_versions_engine_name"), "adapter_versions", ["engine_name"])
    op.create_table(
        "adapter_events",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("engine_name", sa.Text),
        sa.Column("why", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_events")),
    )
    op.create_index(op.f("ix_adapter_events_name"), "adapter_events", ["name"])
    op.create_index(op.f("ix_adapter_events_engine_name"), "adapter_events", ["engine_name"])


def _keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("previous_digest", sa.LargeBinary),
        sa.Column("previous_valid_until", sa.Double),
        sa.Column("scopes", sa.Text, nullable=False),  # a JSON list
        sa.Column("models", sa.Text),  # a JSON list; null: all
        sa.Column("rpm", sa.Integer),
        sa.Column("tpm", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("daily_tokens", sa.BigInteger),
        sa.Column("expires_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "usage_daily",
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("day", sa.Text, nullable=False),  # YYYY-MM-DD, UTC
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "model", "day", name=op.f("pk_usage_daily")),
    )
