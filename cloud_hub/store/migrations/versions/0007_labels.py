"""Labels of predictions (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "labels",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("prediction_id", sa.String(length=200), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("output", sa.String(length=200), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("author", sa.String(length=80), nullable=False),
        sa.Column("replaced_at", sa.Float(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
    )
    op.create_index(op.f("ix_labels_prediction_id"), "labels", ["prediction_id"])
    op.create_index("ix_labels_state_id", "labels", ["state", "id"])
    op.create_table(
        "outcomes",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("prediction_id", sa.String(length=200), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("output", sa.String(length=200), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("joined_at", sa.Float(), nullable=False),
        sa.Column("stratum", sa.String(length=63), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("predicted", sa.Float(), nullable=False),
        sa.Column("truth", sa.Float(), nullable=False),
        sa.Column("error", sa.Float(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("bin", sa.Integer(), nullable=True),
        sa.Column("cell", sa.Integer(), nullable=True),
        sa.Column("log_loss", sa.Float(), nullable=True),
        sa.Column("brier", sa.Float(), nullable=True),
        sa.Column("scores", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outcomes")),
    )
    op.create_index(op.f("ix_outcomes_prediction_id"), "outcomes", ["prediction_id"])
    op.create_index("ix_outcomes_manifest_sha256_output_at", "outcomes", ["manifest_sha256", "output", "at"])
    by_device = ["manifest_sha256", "output", "device", "at"]
    op.create_index("ix_outcomes_manifest_sha256_output_device_at", "outcomes", by_device)
    op.create_table(
        "quality_bounds",
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("output", sa.String(length=200), nullable=False),
        sa.Column("metric", sa.String(length=16), nullable=False),
        sa.Column("bound", sa.Float(), nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
        sa.Column("set_by", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("module", "output", name=op.f("pk_quality_bounds")),
    )


def downgrade() -> None:
    op.drop_table("quality_bounds")
    op.drop_table("outcomes")
    op.drop_table("labels")
