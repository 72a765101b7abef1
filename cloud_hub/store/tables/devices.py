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
    # What lists and queries need of the last report, so that none is decoded for them (`inventory`).
    Column("agent_version", String(40), nullable=False, server_default=""),
    Column("agent_number", BigInteger),  # orders versions, see query.facts.version_number
    Column("arch", String(32), nullable=False, server_default=""),
    Column("accelerators", String(255), nullable=False, server_default=""),  # kinds between commas: ,cuda,edgetpu,
    Column("update_state", String(16), nullable=False, server_default="idle"),
    Column("memory_mib", Integer),
    Column("memory_free_mib", Integer),
    Column("disk_mib", Integer),
    Column("disk_free_mib", Integer),
    Column("temperature_c", Float),
    Column("cores", Integer),
    Column("load", Float),
    Column("rtt_ms", Float),
    Column("booted_at", Float),  # by the hub's clock
    # Presence (`presence`): the broker's last word, of which life and connection; and when it said what, here.
    Column("present", Boolean),
    Column("presence_boot", String(40)),
    Column("presence_number", Integer),
    Column("online_at", Float),
    Column("offline_at", Float),
    Column("seen_at", Float),  # when anything of it was last heard, its end too
    Column("known_version", Integer, nullable=False, server_default="0"),  # the director's version in that report
    # Behind the small ones: a row is read up to the last column that is asked for.
    Column("report", LargeBinary),  # DeviceReport JSON as signed by the device
)
_BEHIND = text("known_version < director_version AND retired_at IS NULL")
Index("ix_devices_behind", devices.c.id, sqlite_where=_BEHIND, postgresql_where=_BEHIND)  # whose doorbell is to ring
# The modules of the last report, as rows for queries and counts; written where they have changed (`inventory`).
reported_modules = Table(
    "reported_modules",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("module", String(63), primary_key=True),
    Column("role", String(16), primary_key=True),  # main, or candidate
    Column("version", Integer, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("verified", Boolean, nullable=False),
    Index("ix_reported_modules_module_version", "module", "version"),
)
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
    Column("role", String(16), primary_key=True),  # main, or candidate
    Column("version", Integer, nullable=False),
    Column("profile", String(63), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("sampling", JSON),  # SamplingPolicy or null for the manifest's own
    Column("config", JSON, nullable=False),
    Column("deployment", String(63), nullable=False),
    Column("assigned_at", Float, nullable=False),
    Column("share", Float, nullable=False, server_default="1"),  # of the predictions, that a candidate gets
    Column("salt", String(64), nullable=False, server_default=""),
    Index("ix_assignments_module_version", "module", "version"),
    Index("ix_assignments_deployment", "deployment"),
)
