"""Rollouts by counts, with rates, windows, approvals and the way back (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("creator", sa.String(length=255), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("config", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("approvals", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("allowance", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("pardoned", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("pardoned_group", sa.Integer(), nullable=False, server_default="-1"))
        batch_op.add_column(sa.Column("signed_again", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("next_at", sa.Float(), nullable=True))
        batch_op.create_index("ix_rollouts_next_at", ["next_at"], unique=False)
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        for name in ("creator", "config", "approvals", "pardoned", "pardoned_group", "signed_again"):
            batch_op.alter_column(name, server_default=None)
    with op.batch_alter_table("executions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("ready_at", sa.Float(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("ready_until", sa.Float(), nullable=True))
    with op.batch_alter_table("executions", schema=None) as batch_op:
        batch_op.alter_column("attempt", server_default=None)
        batch_op.alter_column("ready_at", server_default=None)
        batch_op.create_index("ix_executions_standing", ["rollout", "state", "group_index", "device"], unique=False)
        batch_op.create_index("ix_executions_deadline", ["rollout", "state", "deadline_at"], unique=False)
        batch_op.create_index("ix_executions_ready", ["rollout", "state", "ready_at"], unique=False)
    op.create_table(
        "rollout_counts",
        sa.Column("rollout", sa.String(length=63), nullable=False),
        sa.Column("group_index", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "group_index", "state", name=op.f("pk_rollout_counts")),
    )
    # Rollouts under way: counted once, and looked at with the first tick.
    op.execute(
        "INSERT INTO rollout_counts (rollout, group_index, state, count) "
        "SELECT rollout, group_index, state, count(*) FROM executions WHERE group_index >= 0 "
        "GROUP BY rollout, group_index, state"
    )
    op.execute("UPDATE rollouts SET next_at = 0 WHERE state IN ('running', 'paused')")


def downgrade() -> None:
    op.drop_table("rollout_counts")
    with op.batch_alter_table("executions", schema=None) as batch_op:
        for name in ("ix_executions_ready", "ix_executions_deadline", "ix_executions_standing"):
            batch_op.drop_index(name)
        for name in ("ready_until", "ready_at", "attempt"):
            batch_op.drop_column(name)
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.drop_index("ix_rollouts_next_at")
        for name in (
            "next_at",
            "signed_again",
            "pardoned_group",
            "pardoned",
            "allowance",
            "approvals",
            "config",
            "creator",
        ):
            batch_op.drop_column(name)
