"""What the API remembers of requests: the answers to those that may come again, and long operations."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, String, Table, Text

from cloud_hub.store.tables.base import Id, metadata

# Requests with an Idempotency-Key: written with the first change that the request makes.
kept_requests = Table(
    "kept_requests",
    metadata,
    Column("id", String(64), primary_key=True),  # digest of who asks and their key
    Column("asked", String(64), nullable=False),  # digest of method, path, query and body
    Column("at", Float, nullable=False),
    Column("process", String(32), nullable=False),  # which run of a hub works, or worked, on it
    # Status, headers and body, sealed with the key that the client has; null while there is no answer yet.
    Column("answer", LargeBinary),
    Index("ix_kept_requests_at", "at"),
)
operations = Table(
    "operations",
    metadata,
    Column("number", Id, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("kind", String(80), nullable=False),  # the operation's name in the OpenAPI document
    Column("request", String(200), nullable=False),  # such as POST /modules
    Column("owner", String(160), nullable=False),  # kind and name of the principal
    Column("actor", String(80), nullable=False),
    Column("state", String(16), nullable=False),  # waiting, running, done, failed, cancelled, interrupted
    Column("doing", Text, nullable=False),  # what it is at, for people
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),  # 0: not known
    Column("process", String(32), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),  # when the process that works on it last said so
    Column("ended_at", Float),
    # The answer: its status, its media type, and its bytes, or the file that holds them.
    Column("status", Integer, nullable=False),
    Column("media", String(120), nullable=False),
    Column("answer", LargeBinary),
    Column("blob", String(64)),
    Column("size", BigInteger, nullable=False),
    Index("ix_operations_state", "state"),
    Index("ix_operations_ended_at", "ended_at"),
)
