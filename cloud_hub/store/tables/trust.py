"""Metadata as it is signed and served, and claim tokens."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Integer, LargeBinary, String, Table

from cloud_hub.store.tables.base import metadata

# The image repository as it is served: file name (2.snapshot.json, timestamp.json, ...) -> bytes as signed.
image_files = Table(
    "image_files",
    metadata,
    Column("filename", String(200), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("expires_at", Float, nullable=False),
)
# The newest signed director metadata of each device; `version` never goes down.
director_files = Table(
    "director_files",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("filename", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("expires_at", Float, nullable=False),
)
# Metadata signed elsewhere by fewer keys than its role asks for: one proposal per role waits for more signatures.
pending_metadata = Table(
    "pending_metadata",
    metadata,
    Column("repository", String(16), primary_key=True),  # image, director
    Column("role", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("submitted_at", Float, nullable=False),
    Column("submitted_by", String(80), nullable=False),
)
claim_tokens = Table(
    "claim_tokens",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    Column("id", String(16), nullable=False, unique=True),  # what operators call it; tells nothing of the secret
    Column("device", String(63)),  # an id, or a pattern with *; null: any id
    Column("profile", String(63)),  # null: as the device says
    Column("tags", JSON, nullable=False),
    Column("uses", Integer, nullable=False),  # how many devices it lets in
    Column("used", Integer, nullable=False),  # how many it has let in
    Column("created_by", String(80), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("used_at", Float),  # last
    Column("used_by", String(63)),  # last
)
