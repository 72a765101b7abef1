"""What is asked of devices, blobs of samples, and sampling policies (0.2.0)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "commands",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("module", sa.String(length=63), nullable=False),
        sa.Column("asked", sa.JSON(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("sent_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("found", sa.Integer(), nullable=False),
        sa.Column("arrived", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
    )
    op.create_index("ix_commands_device_created_at", "commands", ["device", "created_at"])
    op.create_index("ix_commands_state_expires_at", "commands", ["state", "expires_at"])
    op.create_table(
        "sample_blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_sample_blobs")),
    )
    op.create_index("ix_sample_blobs_received_at", "sample_blobs", ["received_at"])
    op.create_table(
        "blob_pieces",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("device", "sha256", "offset", name=op.f("pk_blob_pieces")),
    )
    op.create_index("ix_blob_pieces_received_at", "blob_pieces", ["received_at"])
    op.add_column("samples", sa.Column("request", sa.String(length=32), nullable=True))
    op.create_index("ix_samples_request", "samples", ["request"])


def downgrade() -> None:
    op.drop_index("ix_samples_request", "samples")
    op.drop_column("samples", "request")
    op.drop_table("blob_pieces")
    op.drop_table("sample_blobs")
    op.drop_table("commands")
