"""What devices send back: windows, looks, samples. What is found in them: `alerts`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, LargeBinary, String, Table

from cloud_hub.store.tables.base import Id, metadata

# How far each outbox stream of each device is committed: the end-to-end ack comes from here.
streams = Table(
    "streams",
    metadata,
    Column("device", String(63), primary_key=True),
    Column("stream", String(16), primary_key=True),
    Column("epoch", String(63), primary_key=True),
    Column("mark", BigInteger, nullable=False),
    Column("heard_at", Float),  # when the mark last moved; null: before 0.2
)
windows = Table(
    "windows",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False),
    Column("module", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("start", Float, nullable=False),
    Column("end", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),  # modules.windows.Window as received
    # Digest of the device's own id for it and of whose it is: the same window counts once. Null: from before 0.2.
    Column("key", LargeBinary(16)),
    Index("ix_windows_manifest_sha256_end", "manifest_sha256", "end"),
    Index("ix_windows_key", "key", unique=True),
)
# Windows merged per period of the look length: what evidence is computed from. Integers only, so that merging is exact.
looks = Table(
    "looks",
    metadata,
    Column("manifest_sha256", String(64), primary_key=True),
    Column("device", String(264), primary_key=True),  # a scope: a device, "*" for the fleet, or a group "key=value"
    Column("start", Float, primary_key=True),
    Column("module", String(63), nullable=False),
    Column("windows", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    # Arrays are packed by monitoring.integers.
    Column("counts", LargeBinary, nullable=False),  # one per cell of the reference
    Column("moments", LargeBinary, nullable=False),  # in units of monitoring.tallies.TICK
    Column("latency", LargeBinary, nullable=False),  # one per latency bin
    Column("late", BigInteger, nullable=False, server_default="0"),
    Column("clock_jumps", BigInteger, nullable=False, server_default="0"),
    Column(
        "noise", BigInteger, nullable=False, server_default="0"
    ),  # variance of each cell, in monitoring.tallies.TICK
    Column("joint", LargeBinary),  # rows, then sums in JOINT_TICK; null: none was sent
    Column("still", LargeBinary),  # windows per numeric feature; null: none stood still
    Index("ix_looks_module_device_start", "module", "device", "start"),
    Index("ix_looks_start", "start"),
)
# Who has looks, in one row each: asking the looks themselves would mean reading a month of every device.
look_scopes = Table(
    "look_scopes",
    metadata,
    Column("manifest_sha256", String(64), primary_key=True),
    Column("device", String(264), primary_key=True),  # a scope, as in `looks`
    Column("module", String(63), nullable=False),
    Column("rows", BigInteger, nullable=False),  # ever counted
    Column("first", Float, nullable=False),  # start of the first look
    Column("last", Float, nullable=False),  # and of the last
    Index("ix_look_scopes_last", "last"),
)
samples = Table(
    "samples",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False),
    Column("module", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False, index=True),
    Column("prediction_id", String(200), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("stratum", String(63), nullable=False),
    Column("probability", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),  # modules.messages.Sample as received
    Column("request", String(32), index=True),  # the command that asked for it; null: it was sampled
    Index("ix_samples_module_at", "module", "at"),
)
