"""Rollouts, their executions, and how many of these stand where."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, Index, Integer, String, Table, Text

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
    Column("creator", String(255), nullable=False, default=""),
    Column("config", Integer, nullable=False, default=0),  # the revision of the module's configuration that it brings
    Column("approvals", JSON, nullable=False, default=list),
    Column("allowance", JSON),  # how many devices may begin, where there is a rate
    Column("pardoned", JSON, nullable=False, default=dict),  # failures by state that a person let pass
    Column("pardoned_group", Integer, nullable=False, default=-1),
    Column("signed_again", Boolean, nullable=False, default=False),
    # When time alone may change something; null when only reports and people do. Not part of what the API tells.
    Column("next_at", Float, index=True),
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
    Column("attempt", Integer, nullable=False, default=0),
    Column("ready_at", Float, nullable=False, default=0.0),  # it does not begin before
    Column("ready_until", Float),  # nor after: its maintenance window
    Index("ix_executions_device_state", "device", "state"),
    Index("ix_executions_standing", "rollout", "state", "group_index", "device"),
    Index("ix_executions_deadline", "rollout", "state", "deadline_at"),
    Index("ix_executions_ready", "rollout", "state", "ready_at"),
)
# Executions by state, changed with them: what follows is decided on these, whatever the size of the fleet.
rollout_counts = Table(
    "rollout_counts",
    metadata,
    Column("rollout", String(63), primary_key=True),
    Column("group_index", Integer, primary_key=True),
    Column("state", String(16), primary_key=True),
    Column("count", Integer, nullable=False),
)
