"""What private windows have spent, by device, module and day."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table

from cloud_hub.store.tables.base import metadata

privacy_spent = Table(
    "privacy_spent",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("module", String(63), primary_key=True),
    Column("day", Integer, primary_key=True),  # of the windows' start, in days since the epoch
    Column("rho", Float, nullable=False),
    Column("windows", BigInteger, nullable=False),
    Index("ix_privacy_spent_day", "day"),
)
