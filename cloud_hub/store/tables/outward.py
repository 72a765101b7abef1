"""Where events go: cursors of those who follow them, webhooks, and what became of each delivery."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from cloud_hub.store.tables.base import Id, metadata

# How far each follower of the events has come.
cursors = Table(
    "cursors",
    metadata,
    Column("name", String(80), primary_key=True),  # such as log, mqtt, webhook:3f2a...
    Column("event", BigInteger, nullable=False),
)
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("url", Text, nullable=False),
    Column("kinds", JSON, nullable=False),
    Column("module", String(63), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("scope", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    # Sealed with a key that is not in the database (`outward.secrets`); the one before counts until `previous_until`.
    Column("secret", LargeBinary, nullable=False),
    Column("previous", LargeBinary),
    Column("previous_until", Float),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(80), nullable=False),
    Column("failing_since", Float),
    Column("failures", Integer, nullable=False),  # attempts in a row
    Column("not_before", Float, nullable=False),  # the next attempt
)
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("webhook", String(32), nullable=False),
    Column("event", BigInteger, nullable=False),
    Column("kind", String(63), nullable=False),
    Column("state", String(16), nullable=False),  # waiting, delivered, dead, again
    Column("attempts", Integer, nullable=False),
    Column("status", Integer, nullable=False),  # of HTTP; 0 where no answer came
    Column("reason", Text, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Index("ix_deliveries_webhook_state_id", "webhook", "state", "id"),
    Index("ix_deliveries_webhook_event", "webhook", "event", unique=True),
    Index("ix_deliveries_last_at", "last_at"),
)
