"""Leases of replicas, and which devices lag behind their director (0.2.0).

Of devices that reported to an older hub nobody knows what they know: their next report says it, and until then their
doorbell is rung as for any that lags.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels = None
depends_on = None

_BEHIND = "known_version < director_version AND retired_at IS NULL"


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("holder", sa.String(80), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.add_column("devices", sa.Column("known_version", sa.Integer(), nullable=False, server_default="0"))
    where = sa.text(_BEHIND)
    op.create_index("ix_devices_behind", "devices", ["id"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_index("ix_devices_behind", "devices")
    op.drop_column("devices", "known_version")
    op.drop_table("leases")
