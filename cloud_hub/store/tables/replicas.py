"""Which process of several may do what only one may do."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, String, Table

from cloud_hub.store.tables.base import metadata

# One row per lease. `token` grows with each new holder, so that an old one is told from it; times are the database's.
leases = Table(
    "leases",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("holder", String(80), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("until", Float, nullable=False),
)
