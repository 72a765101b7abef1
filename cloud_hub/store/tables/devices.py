"""Devices, revoked certificates, and what each device shall run."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, LargeBinary, String, Table, Text, text

from cloud_hub.store.tables.base import metadata

devices = Table(
    "devices",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("profile", String(63), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("certificate", Text, nullable=False),  # PEM
    Column("next_certificate", Text),  # PEM: given out at a renewal, and not seen in use yet
    Column("issued_at", Float, nullable=False, default=0.0),  # when the newest of them was given out
    Column("readmit_until", Float),  # until then an expired certificate may be renewed, once
    Column("boots", JSON, nullable=False, default=list),  # list of text: lives of the agent, oldest first
    Column("created_at", Float, nullable=False),
    Column("retired_at", Float),
    Column("director_version", Integer, nullable=False),  # the version that the director stands at, signed or not yet
    Column("report_counter", BigInteger, nullable=False),
    Column("report_at", Float),  # by the hub's clock
    Column("known_version", Integer, nullable=False, server_default="0"),  # the director's version in that report
    Column("report", LargeBinary),  # DeviceReport JSON as signed by the device
)
_BEHIND = text("known_version < director_version AND retired_at IS NULL")
Index("ix_devices_behind", devices.c.id, sqlite_where=_BEHIND, postgresql_where=_BEHIND)  # whose doorbell is to ring
# Certificates that are no longer to be accepted, until they end. The list that the broker reads is made of these.
revocations = Table(
    "revocations",
    metadata,
    Column("serial", String(40), primary_key=True),  # hexadecimal
    Column("device", String(63), nullable=False, index=True),
    Column("reason", String(32), nullable=False),
    Column("external", Boolean, nullable=False),  # given out by the authority that `ca_command` asks
    Column("revoked_at", Float, nullable=False),
    Column("ends_at", Float, nullable=False),
)
# The desired set: what each device shall run. The director signs exactly this.
assignments = Table(
    "assignments",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("module", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("profile", String(63), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("sampling", JSON),  # SamplingPolicy or null for the manifest's own
    Column("config", JSON, nullable=False),
    Column("deployment", String(63), nullable=False),
    Column("assigned_at", Float, nullable=False),
    Index("ix_assignments_module_version", "module", "version"),
)
