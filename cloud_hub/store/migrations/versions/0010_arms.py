"""Versions against each other, and what privacy was spent (0.2.0)."""

from __future__ import annotations

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
