"""What looks hold beside counts, looks of groups of devices, and windows by their id (0.2.0)."""

from __future__ import annotations

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
