"""Rollouts by counts, with rates, windows, approvals and the way back (0.2.0)."""

from __future__ import annotations

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
