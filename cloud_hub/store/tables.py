"""Every table of the hub, as SQLAlchemy Core metadata. No queries here: each room keeps its own.

Times are seconds since the epoch (float, UTC). JSON columns hold what msgspec.to_builtins gives. Bytes that were
signed or received are kept exactly as they came. Alembic migrations under `migrations/` make this schema; a test
compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite makes row ids only for INTEGER primary keys.
_Id = BigInteger().with_variant(Integer(), "sqlite")

# --- registry -------------------------------------------------------------------------------------------------
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

# --- modules --------------------------------------------------------------------------------------------------
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

# --- trust ----------------------------------------------------------------------------------------------------
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

# --- devices --------------------------------------------------------------------------------------------------
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
    Column("report", LargeBinary),  # DeviceReport JSON as signed by the device
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
    Column("version", Integer, nullable=False),
    Column("profile", String(63), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("sampling", JSON),  # SamplingPolicy or null for the manifest's own
    Column("config", JSON, nullable=False),
    Column("deployment", String(63), nullable=False),
    Column("assigned_at", Float, nullable=False),
    Index("ix_assignments_module_version", "module", "version"),
)

# --- rollouts -------------------------------------------------------------------------------------------------
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

# --- monitoring -----------------------------------------------------------------------------------------------
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
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False),
    Column("module", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("start", Float, nullable=False),
    Column("end", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),  # modules.windows.Window as received
    Index("ix_windows_manifest_sha256_end", "manifest_sha256", "end"),
)
# Windows merged per period of the look length: what evidence is computed from. Integers only, so that merging is exact.
looks = Table(
    "looks",
    metadata,
    Column("manifest_sha256", String(64), primary_key=True),
    Column("device", String(63), primary_key=True),  # "*" for the whole fleet
    Column("start", Float, primary_key=True),
    Column("module", String(63), nullable=False),
    Column("windows", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("counts", LargeBinary, nullable=False),  # int64, little-endian, one per cell of the reference
    Column("moments", LargeBinary, nullable=False),  # int64, little-endian, in units of monitoring.looks.TICK
    Column("latency", LargeBinary, nullable=False),  # int64, little-endian, one per latency bin
    Index("ix_looks_module_device_start", "module", "device", "start"),
)
samples = Table(
    "samples",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("device", String(63), nullable=False),
    Column("module", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False, index=True),
    Column("prediction_id", String(200), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("stratum", String(63), nullable=False),
    Column("probability", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),  # modules.messages.Sample as received
    Index("ix_samples_module_at", "module", "at"),
)
alerts = Table(
    "alerts",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),  # drift, quality
    Column("module", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("scope", String(80), nullable=False),  # "fleet" or "device:<id>"
    Column("state", String(16), nullable=False, index=True),  # open, resolved
    Column("opened_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("resolved_at", Float),
    Column("evidence", JSON, nullable=False),
)

# --- events ---------------------------------------------------------------------------------------------------
# Append-only: every change (audit) and everything that happened to devices.
events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", String(63), nullable=False, index=True),  # such as model.registered, device.enrolled
    Column("actor", String(80), nullable=False),
    Column("subject", String(200), nullable=False, index=True),
    Column("details", JSON, nullable=False),
    # The chain: each hash is over the row and the hash before, so that a row taken out or changed shows.
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

# --- people and programs --------------------------------------------------------------------------------------
users = Table(
    "users",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("scope", Text, nullable=False),  # tag queries joined by " or "; empty: every device
    Column("password_hash", Text, nullable=False),  # Argon2id, with its parameters and salt
    Column("created_at", Float, nullable=False),
    Column("password_at", Float, nullable=False),
    Column("disabled_at", Float),
)
# API credentials: only the digest of the token is kept. A session belongs to a user, who gives it role and scope.
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("name", String(63), nullable=False),
    Column("user", String(63), ForeignKey("users.name", ondelete="CASCADE"), index=True),  # null: a service token
    Column("role", String(16), nullable=False),
    Column("scope", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("used_at", Float),
)

__all__ = [
    "alerts",
    "api_tokens",
    "assignments",
    "claim_tokens",
    "devices",
    "director_files",
    "events",
    "executions",
    "image_files",
    "looks",
    "metadata",
    "model_counters",
    "model_files",
    "model_versions",
    "modules",
    "patches",
    "pending_metadata",
    "revocations",
    "rollouts",
    "samples",
    "streams",
    "users",
    "windows",
]
