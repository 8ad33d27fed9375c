"""Canaries, owners and limits of an adapter; lineage, checksums and proof of a version; who moved what; the gateways.

Times are unix seconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("canary", sa.Text),
        sa.Column("canary_percent", sa.Double),
        sa.Column("canary_rules", sa.Text),  # JSON
        sa.Column("canary_since", sa.Double),
        sa.Column("owner", sa.Text),  # id of the key it was made with; null: an operator's
        sa.Column("rpm", sa.Integer),
        sa.Column("tpm", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("daily_tokens", sa.BigInteger),
    ):
        op.add_column("adapters", column)
    for column in (
        sa.Column("lineage", sa.Text),  # JSON: how it was made
        sa.Column("checksums", sa.Text),  # JSON: file name → sha256 as it came
        sa.Column("proof", sa.Text),  # JSON: what the first engine that proved it said
    ):
        op.add_column("adapter_versions", column)
    op.add_column("adapter_events", sa.Column("actor", sa.Text))
    op.create_table(
        "gateways",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),  # what its requests see
        sa.Column("lingering", sa.Text, nullable=False),  # JSON list: engine names that requests in flight use
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
    )
