"""Candidates beside what serves: shadows and arms (0.2.0)."""

from __future__ import annotations

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
