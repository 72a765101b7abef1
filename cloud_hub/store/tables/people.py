"""Users and credentials."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, String, Table, Text

from cloud_hub.store.tables.base import metadata

users = Table(
    "users",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("scope", Text, nullable=False),  # tag queries joined by " or "; empty: every device
    Column("password_hash", Text, nullable=False),  # Argon2id, with its parameters and salt
    Column("created_at", Float, nullable=False),
    Column("password_at", Float, nullable=False),
    Column("disabled_at", Float),
)
# API credentials: only the digest of the token is kept. A session belongs to a user, who gives it role and scope.
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("name", String(63), nullable=False),
    Column("user", String(63), ForeignKey("users.name", ondelete="CASCADE"), index=True),  # null: a service token
    Column("role", String(16), nullable=False),
    Column("scope", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("used_at", Float),
)
