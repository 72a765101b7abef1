"""Static groups of devices, their members, and the queries that people keep under a name."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, String, Table, Text

from cloud_hub.store.tables.base import metadata

device_groups = Table(
    "device_groups",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("description", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
group_members = Table(
    "group_members",
    metadata,
    Column("name", String(63), ForeignKey("device_groups.name", ondelete="CASCADE"), primary_key=True),
    Column("device", String(63), primary_key=True),
    Column("added_at", Float, nullable=False),
    Index("ix_group_members_device", "device"),
)
saved_queries = Table(
    "saved_queries",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("query", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("changed_at", Float, nullable=False),
)
