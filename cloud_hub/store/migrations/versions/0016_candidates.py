"""Candidates beside what serves: shadows and arms (0.2.0). What was assigned before is a main version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("role", sa.String(16), nullable=False, server_default="main"))
        batch_op.add_column(sa.Column("share", sa.Float(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("salt", sa.String(64), nullable=False, server_default=""))
        batch_op.drop_constraint(op.f("pk_assignments"), type_="primary")
        batch_op.create_primary_key(op.f("pk_assignments"), ["device", "module", "role"])
        batch_op.create_index("ix_assignments_deployment", ["deployment"])
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.alter_column("role", existing_type=sa.String(16), existing_nullable=False, server_default=None)
    op.create_table(
        "candidates",
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("module", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("way", sa.String(16), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("promoted_by", sa.String(63), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("creator", sa.String(255), nullable=False),
        sa.Column("ended_at", sa.Float()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidates")),
    )
    with op.batch_alter_table("candidates", schema=None) as batch_op:
        batch_op.create_index("ix_candidates_module", ["module", "created_at"])


def downgrade() -> None:
    op.drop_table("candidates")
    op.execute("DELETE FROM assignments WHERE role <> 'main'")
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.drop_index("ix_assignments_deployment")
        batch_op.drop_constraint(op.f("pk_assignments"), type_="primary")
        batch_op.create_primary_key(op.f("pk_assignments"), ["device", "module"])
        batch_op.drop_column("salt")
        batch_op.drop_column("share")
        batch_op.drop_column("role")
