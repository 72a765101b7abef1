"""Models by version, the modules built of them, and patches between their files."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKeyConstraint, Integer, String, Table, Text

from cloud_hub.store.tables.base import metadata

model_versions = Table(
    "model_versions",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("description", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("git_commit", Text, nullable=False),
    Column("training_run", Text, nullable=False),
    Column("datasets", JSON, nullable=False),  # list of text
    Column("tags", JSON, nullable=False),  # text -> text
    Column("mlflow_run", Text, nullable=False, server_default=""),
    Column("mlflow_uri", Text, nullable=False, server_default=""),
    Column("parent", Text, nullable=False, server_default=""),  # NAME:VERSION that it was trained from
    Column("created_at", Float, nullable=False),
)
# The highest version ever given, so that a deleted version's number is never used again.
model_counters = Table(
    "model_counters",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
)
model_files = Table(
    "model_files",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("path", String(200), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)

modules = Table(
    "modules",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("profile", String(63), primary_key=True),
    Column("publisher", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False, index=True),
    Column("manifest_size", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes of all files
    Column("release_counter", Integer),  # null until signed
    Column("created_at", Float, nullable=False),
    Column("signed_at", Float),
)

# Patches between files of modules, and those that are still to be built: the queue is the table.
patches = Table(
    "patches",
    metadata,
    Column("target", String(64), primary_key=True),  # SHA-256 of the file that it makes
    Column("base", String(64), primary_key=True),  # and of the file that it starts from
    Column("module", String(63), nullable=False, index=True),
    Column("path", String(200), nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("target_size", BigInteger, nullable=False),
    Column("devices", Integer, nullable=False),  # that hold the base and are to have the target
    Column("holders", Integer, nullable=False),  # that hold the base
    Column("state", String(16), nullable=False, index=True),  # queued, building, built, dropped, failed
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),  # when it may be tried again
    Column("reason", Text, nullable=False),
    Column("sha256", String(64), index=True),  # of the patch, a blob; null until it is built
    Column("size", BigInteger),
    Column("queued_at", Float, nullable=False),
    Column("built_at", Float),
    Column("build_s", Float),
)
