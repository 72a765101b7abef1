"""Rollouts and their executions."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, String, Table, Text

from cloud_hub.store.tables.base import metadata

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("module", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("target", Text, nullable=False),  # the tag query
    Column("plan", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("group_index", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("gate", JSON),  # how the gate behind the latest group stands
)
executions = Table(
    "executions",
    metadata,
    Column("rollout", String(63), primary_key=True),
    Column("device", String(63), primary_key=True),
    Column("group_index", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("director_version", Integer, nullable=False),  # the first version that carries the assignment; 0 before
    Column("previous", JSON),  # the assignment that stood before, to go back to
    Column("reason_key", String(63), nullable=False),
    Column("reason", Text, nullable=False),
    Column("started_at", Float),
    Column("deadline_at", Float),
    Column("finished_at", Float),
    Index("ix_executions_device_state", "device", "state"),
)
