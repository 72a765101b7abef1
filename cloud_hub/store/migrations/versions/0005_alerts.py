"""The life of an alert and its history, and what modules are compared with (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.alter_column("scope", existing_type=sa.String(80), type_=sa.String(280), existing_nullable=False)
        batch_op.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("severity", sa.String(16), nullable=False, server_default="warning"))
        batch_op.add_column(sa.Column("parent", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("snoozed_until", sa.Float(), nullable=True))
        batch_op.create_index("ix_alerts_manifest_sha256_scope_kind", ["manifest_sha256", "scope", "kind"])
        batch_op.create_index("ix_alerts_parent", ["parent"])
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "alert_changes",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("alert", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("change", sa.String(16), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_alert_changes_alert", "alert_changes", ["alert"])
    op.create_table(
        "watches",
        sa.Column("module", sa.String(63), nullable=False),
        sa.Column("scope", sa.String(280), nullable=False),
        sa.Column("reference", sa.JSON(), nullable=False),
        sa.Column("author", sa.String(80), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("module", "scope"),
    )
    op.create_table(
        "watch_counts",
        sa.Column("module", sa.String(63), nullable=False),
        sa.Column("scope", sa.String(280), nullable=False),
        sa.Column("reference_sha256", sa.String(64), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("joint", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("module", "scope", "reference_sha256"),
    )


def downgrade() -> None:
    op.drop_table("watch_counts")
    op.drop_table("watches")
    op.drop_index("ix_alert_changes_alert", "alert_changes")
    op.drop_table("alert_changes")
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.drop_index("ix_alerts_parent")
        batch_op.drop_index("ix_alerts_manifest_sha256_scope_kind")
        batch_op.drop_column("snoozed_until")
        batch_op.drop_column("parent")
        batch_op.drop_column("severity")
        batch_op.drop_column("version")
        batch_op.alter_column("scope", existing_type=sa.String(280), type_=sa.String(80), existing_nullable=False)
