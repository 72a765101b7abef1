"""What looks hold beside counts, looks of groups of devices, and windows by their id (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None

SCOPES_THERE = """
insert into look_scopes (manifest_sha256, device, module, rows, first, last)
select manifest_sha256, device, min(module), sum(rows), min(start), max(start)
from looks group by manifest_sha256, device
"""


def upgrade() -> None:
    with op.batch_alter_table("looks", schema=None) as batch_op:
        batch_op.alter_column(
            "device", existing_type=sa.String(length=63), type_=sa.String(length=264), existing_nullable=False
        )
        batch_op.add_column(sa.Column("late", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("clock_jumps", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("noise", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("joint", sa.LargeBinary(), nullable=True))
        batch_op.add_column(sa.Column("still", sa.LargeBinary(), nullable=True))
        batch_op.create_index("ix_looks_start", ["start"], unique=False)

    with op.batch_alter_table("windows", schema=None) as batch_op:
        batch_op.add_column(sa.Column("key", sa.LargeBinary(length=16), nullable=True))
        batch_op.create_index("ix_windows_key", ["key"], unique=True)

    op.create_table(
        "look_scopes",
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=264), nullable=False),
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.Float(), nullable=False),
        sa.Column("last", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("manifest_sha256", "device", name=op.f("pk_look_scopes")),
    )
    with op.batch_alter_table("look_scopes", schema=None) as batch_op:
        batch_op.create_index("ix_look_scopes_last", ["last"], unique=False)
    op.execute(SCOPES_THERE)


def downgrade() -> None:
    op.drop_table("look_scopes")
    with op.batch_alter_table("windows", schema=None) as batch_op:
        batch_op.drop_index("ix_windows_key")
        batch_op.drop_column("key")

    with op.batch_alter_table("looks", schema=None) as batch_op:
        batch_op.drop_index("ix_looks_start")
        for name in ("still", "joint", "noise", "clock_jumps", "late"):
            batch_op.drop_column(name)
        batch_op.alter_column(
            "device", existing_type=sa.String(length=264), type_=sa.String(length=63), existing_nullable=False
        )
