"""Alerts with their history, and what each module is compared with."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from cloud_hub.store.tables.base import Id, metadata

alerts = Table(
    "alerts",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),  # see monitoring.alert_book.AlertKind
    Column("module", String(63), nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),  # 0: not of one version
    Column("manifest_sha256", String(64), nullable=False),
    Column("scope", String(280), nullable=False),  # "fleet", "device:<id>" or "group:<key=value>"
    Column("state", String(16), nullable=False, index=True),  # open, acknowledged, snoozed, resolved
    Column("severity", String(16), nullable=False, server_default="warning"),  # warning, critical
    Column("parent", BigInteger),  # the alert of a wider scope that says the same; null where it stands for itself
    Column("opened_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("resolved_at", Float),
    Column("snoozed_until", Float),
    Column("evidence", JSON, nullable=False),
    Index("ix_alerts_manifest_sha256_scope_kind", "manifest_sha256", "scope", "kind"),
    Index("ix_alerts_parent", "parent"),
)
# Who did what to an alert: its own history. The audit trail has the same, of everything.
alert_changes = Table(
    "alert_changes",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("alert", BigInteger, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("actor", String(80), nullable=False),
    Column("change", String(16), nullable=False),  # opened, acknowledged, snoozed, reopened, attached, resolved
    Column("comment", Text, nullable=False),
)
# What a module is compared with, where that is not its training data.
watches = Table(
    "watches",
    metadata,
    Column("module", String(63), primary_key=True),
    Column("scope", String(280), primary_key=True),  # as in alerts; "fleet" is for every scope without its own
    Column("reference", JSON, nullable=False),  # monitoring.watches.Reference
    Column("author", String(80), nullable=False),
    Column("at", Float, nullable=False),
)
# Counts of a watch as they were when it was set: they do not change while looks are added and forgotten.
watch_counts = Table(
    "watch_counts",
    metadata,
    Column("module", String(63), primary_key=True),
    Column("scope", String(280), primary_key=True),
    Column("reference_sha256", String(64), primary_key=True),  # the profile whose cells were counted
    Column("rows", BigInteger, nullable=False),
    Column("counts", LargeBinary, nullable=False),  # int64, little-endian, one per cell
    Column("joint", LargeBinary),  # int64, little-endian: rows, then sums in JOINT_TICK; null: none were sent
)
