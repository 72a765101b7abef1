"""Configuration of modules: every revision of what was said for the fleet, for groups and for devices."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Integer, String, Table, Text

from cloud_hub.store.tables.base import metadata

# Which of them stands is derived, see configuration.book.
configurations = Table(
    "configurations",
    metadata,
    Column("module", String(63), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("document", JSON, nullable=False),  # fleet, targets in order, devices
    Column("base", Integer, nullable=False),  # the revision that it was made from, 0 for nothing
    Column("comment", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(80), nullable=False),
    Column("stood_at", Float),  # where no rollout was needed
)
