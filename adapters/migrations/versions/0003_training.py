"""Training: uploaded files, jobs with their events and checkpoints, and the corrections that callers send.

Times are unix seconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text, nullable=False),  # file-…
        sa.Column("owner", sa.Text),  # id of the key it came with; null: an operator's
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),  # sha256, 64 hex digits
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("details", sa.Text),  # why it is no good
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),  # ftjob-…
        sa.Column("owner", sa.Text),  # id of the key that made it; null: an operator's
        sa.Column("name", sa.Text, nullable=False),  # public name of the adapter to be
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("phase", sa.Text),  # of a running job
        sa.Column("wish", sa.Text),  # what its worker is asked to do with it
        sa.Column("priority", sa.Integer, nullable=False),  # larger is sooner
        sa.Column("recipe", sa.Text, nullable=False),  # JSON, as asked
        sa.Column("request", sa.Text),  # JSON: what came through /v1/fine_tuning/jobs
        sa.Column("settled", sa.Text),  # JSON, with every `auto` decided
        sa.Column("progress", sa.Text),  # JSON
        sa.Column("outcome", sa.Text),
        sa.Column("result", sa.Text),  # JSON
        sa.Column("error", sa.Text),  # JSON: code, message, param
        sa.Column("worker", sa.Text),
        sa.Column("seen_at", sa.Double),  # when its worker last said that it is there
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"])
    op.create_table(
        "job_events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.Text),  # JSON
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
    )
    op.create_index(op.f("ix_job_events_job"), "job_events", ["job"])
    op.create_table(
        "job_checkpoints",
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),  # JSON
        sa.Column("version", sa.Text),  # 12 hex digits, once it can be asked
        sa.PrimaryKeyConstraint("job", "step", name=op.f("pk_job_checkpoints")),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("owner", sa.Text),  # id of the key that sent it
        sa.Column("model", sa.Text, nullable=False),  # public name
        sa.Column("version", sa.Text),
        sa.Column("body", sa.Text, nullable=False),  # JSON: the conversation, the answer, the correction
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
    )
    op.create_index(op.f("ix_feedback_model"), "feedback", ["model"])
