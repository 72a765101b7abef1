"""Sites that work without the hub (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sites",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("added_at", sa.Float(), nullable=False),
        sa.Column("merged_at", sa.Float(), nullable=True),
        sa.Column("made_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sites")),
    )
    op.create_table(
        "site_devices",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("site", sa.String(length=20), nullable=False),
        sa.Column("profile", sa.String(length=63), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=True),
        sa.Column("report_at", sa.Float(), nullable=True),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site_devices")),
    )
    with op.batch_alter_table("site_devices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_site_devices_site"), ["site"], unique=False)
    op.create_table(
        "site_marks",
        sa.Column("stream", sa.String(length=16), nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream", name=op.f("pk_site_marks")),
    )


def downgrade() -> None:
    op.drop_table("site_marks")
    op.drop_table("site_devices")
    op.drop_table("sites")
