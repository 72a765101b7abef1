"""Versions against each other, and what privacy was spent (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gate", sa.JSON(), nullable=True))
    op.create_table(
        "privacy_spent",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("rho", sa.Float(), nullable=False),
        sa.Column("windows", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", "module", "day", name=op.f("pk_privacy_spent")),
    )
    with op.batch_alter_table("privacy_spent", schema=None) as batch_op:
        batch_op.create_index("ix_privacy_spent_day", ["day"], unique=False)


def downgrade() -> None:
    op.drop_table("privacy_spent")
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.drop_column("gate")
