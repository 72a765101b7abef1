"""What is asked of devices, and the large tensors of samples: which there are, and pieces that are still coming."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from cloud_hub.store.tables.base import metadata

# What a device was asked to do beside its desired state, and what became of it.
commands = Table(
    "commands",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(63), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("module", String(63), nullable=False),  # empty where no module is meant
    Column("asked", JSON, nullable=False),  # what for, as people read it
    Column("body", LargeBinary, nullable=False),  # the same, as the device gets it
    Column("created_at", Float, nullable=False),
    Column("created_by", String(80), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("state", String(16), nullable=False),  # pending, done, refused, failed, expired
    Column("sent_at", Float),  # last
    Column("ended_at", Float),
    Column("key", String(63), nullable=False, default=""),
    Column("text", Text, nullable=False, default=""),
    Column("count", Integer, nullable=False, default=0),  # things that the device says it has sent
    Column("found", Integer, nullable=False, default=0),
    Column("arrived", Integer, nullable=False, default=0),  # of those, what is here
    Column("batch", String(32), nullable=False, server_default=""),  # of those that were asked at once
    Column("result_sha256", String(64), nullable=False, server_default=""),  # what it brought, among sample_blobs
    Column("result_size", Integer, nullable=False, server_default="0"),
    Index("ix_commands_batch", "batch"),
    Index("ix_commands_created_at", "created_at"),
    Index("ix_commands_device_created_at", "device", "created_at"),
    Index("ix_commands_state_expires_at", "state", "expires_at"),
)
# Tensors too large for their sample, whole: the bytes lie among the blobs of samples.
sample_blobs = Table(
    "sample_blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False, index=True),  # last
)
blob_pieces = Table(
    "blob_pieces",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("size", BigInteger, nullable=False),  # of the whole
    Column("length", Integer, nullable=False),
    Column("received_at", Float, nullable=False, index=True),
    Column("data", LargeBinary, nullable=False),
)
