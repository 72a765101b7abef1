"""The queue of patches, and those that were built (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "patches",
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("base_version", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("target_size", sa.BigInteger(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("holders", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("queued_at", sa.Float(), nullable=False),
        sa.Column("built_at", sa.Float(), nullable=True),
        sa.Column("build_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("target", "base", name=op.f("pk_patches")),
    )
    with op.batch_alter_table("patches", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_patches_module"), ["module"], unique=False)
        batch_op.create_index(batch_op.f("ix_patches_sha256"), ["sha256"], unique=False)
        batch_op.create_index(batch_op.f("ix_patches_state"), ["state"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("patches", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_patches_state"))
        batch_op.drop_index(batch_op.f("ix_patches_sha256"))
        batch_op.drop_index(batch_op.f("ix_patches_module"))

    op.drop_table("patches")
