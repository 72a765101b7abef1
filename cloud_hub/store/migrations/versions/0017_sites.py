"""Sites that work without the hub (0.2.0)."""

from __future__ import annotations

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
