"""Configuration of modules and what devices are asked to do (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("commands", schema=None) as batch_op:
        batch_op.add_column(sa.Column("batch", sa.String(length=32), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("result_sha256", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("result_size", sa.Integer(), nullable=False, server_default="0"))
        batch_op.create_index("ix_commands_batch", ["batch"], unique=False)
        batch_op.create_index("ix_commands_created_at", ["created_at"], unique=False)
    op.create_table(
        "configurations",
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("base", sa.Integer(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("stood_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("module", "revision", name=op.f("pk_configurations")),
    )


def downgrade() -> None:
    op.drop_table("configurations")
    with op.batch_alter_table("commands", schema=None) as batch_op:
        batch_op.drop_index("ix_commands_created_at")
        batch_op.drop_index("ix_commands_batch")
        batch_op.drop_column("result_size")
        batch_op.drop_column("result_sha256")
        batch_op.drop_column("batch")
