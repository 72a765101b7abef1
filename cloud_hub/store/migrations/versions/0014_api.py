"""Requests that came before, and long operations (0.2.0)."""

from __future__ import annotations

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
