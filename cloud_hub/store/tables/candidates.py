"""Candidates: versions that run beside what serves, with the rollout that brought each (its id is the candidate's)."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, String, Table, Text

from cloud_hub.store.tables.base import metadata

candidates = Table(
    "candidates",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("module", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("way", String(16), nullable=False),  # shadow, or arm
    Column("split", String(16), nullable=False),  # request, or device
    Column("share", Float, nullable=False),
    Column("salt", String(64), nullable=False),
    Column("target", Text, nullable=False),
    Column("state", String(16), nullable=False),  # running, promoted, dropped
    Column("promoted_by", String(63), nullable=False),  # the rollout that made it the main version
    Column("created_at", Float, nullable=False),
    Column("creator", String(255), nullable=False),
    Column("ended_at", Float),
    Index("ix_candidates_module", "module", "created_at"),
)
