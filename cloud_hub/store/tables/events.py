"""The audit trail."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, String, Table

from cloud_hub.store.tables.base import Id, metadata

# Append-only: every change (audit) and everything that happened to devices.
events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", String(63), nullable=False, index=True),  # such as model.registered, device.enrolled
    Column("actor", String(80), nullable=False),
    Column("subject", String(200), nullable=False, index=True),
    Column("details", JSON, nullable=False),
    # The chain: each hash is over the row and the hash before, so that a row taken out or changed shows.
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
