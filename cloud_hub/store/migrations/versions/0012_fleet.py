"""What lists and queries need of devices without decoding reports; groups, and saved queries (0.2.0).

In SQLite the table is written anew, so that a report comes behind the small columns: a row is read up to the last
column that is asked for. What a device has reported before stands in the new columns with its next report.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels = None
depends_on = None

_TEXTS = (("agent_version", 40, ""), ("arch", 32, ""), ("accelerators", 255, ""), ("update_state", 16, "idle"))
_WHOLE = ("memory_mib", "memory_free_mib", "disk_mib", "disk_free_mib", "cores", "presence_number")
_FLOATS = ("temperature_c", "load", "rtt_ms", "booted_at", "online_at", "offline_at", "seen_at")
_NEW = (*(name for name, _, _ in _TEXTS), "agent_number", "present", "presence_boot", *_WHOLE, *_FLOATS)


def upgrade() -> None:
    _add_columns()
    op.execute("UPDATE devices SET seen_at = report_at")
    op.create_table(
        "reported_modules",
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("module", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("device", "module", "role", name=op.f("pk_reported_modules")),
    )
    op.create_index("ix_reported_modules_module_version", "reported_modules", ["module", "version"])
    _modules_of_last_reports()
    _groups()


def _add_columns() -> None:
    columns: list[sa.Column[Any]] = []
    columns += [sa.Column(name, sa.String(size), nullable=False, server_default=was) for name, size, was in _TEXTS]
    columns += [sa.Column("agent_number", sa.BigInteger()), sa.Column("present", sa.Boolean())]
    columns.append(sa.Column("presence_boot", sa.String(40)))
    columns += [sa.Column(name, sa.Integer()) for name in _WHOLE]
    columns += [sa.Column(name, sa.Float()) for name in _FLOATS]
    if op.get_bind().dialect.name != "sqlite":
        for column in columns:
            op.add_column("devices", column)
        return
    with op.batch_alter_table("devices", recreate="always") as batch:
        for column in columns:
            batch.add_column(column, insert_before="report")


def _modules_of_last_reports() -> None:
    """From now on they are written only where they change."""
    connection, after = op.get_bind(), ""
    page = sa.text("SELECT id, report FROM devices WHERE report IS NOT NULL AND id > :after ORDER BY id LIMIT 500")
    made = sa.text(
        "INSERT INTO reported_modules VALUES (:device, :module, 'main', :version, :sha256, :state, :verified)"
    )
    while found := connection.execute(page, {"after": after}).all():
        rows = [row for device, report in found for row in _rows(device, json.loads(bytes(report)))]
        if rows:
            connection.execute(made, rows)
        after = found[-1][0]


def _rows(device: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = {
        module["name"]: {
            "device": device,
            "module": module["name"],
            "version": module["version"],
            "sha256": module["manifest_sha256"],
            "state": module["state"],
            "verified": module["verified"],
        }
        for module in report["modules"][:64]
        if len(module["name"]) < 64 and module["name"].isprintable() and len(module["manifest_sha256"]) <= 64
    }
    return list(rows.values())


def _groups() -> None:
    op.create_table(
        "device_groups",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_device_groups")),
    )
    op.create_table(
        "group_members",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("device", sa.String(63), nullable=False),
        sa.Column("added_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["name"], ["device_groups.name"], name=op.f("fk_group_members_name_device_groups"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("name", "device", name=op.f("pk_group_members")),
    )
    op.create_index("ix_group_members_device", "group_members", ["device"])
    op.create_table(
        "saved_queries",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_saved_queries")),
    )


def downgrade() -> None:
    for table in ("saved_queries", "group_members", "device_groups", "reported_modules"):
        op.drop_table(table)
    with op.batch_alter_table("devices") as batch:
        for name in _NEW:
            batch.drop_column(name)
