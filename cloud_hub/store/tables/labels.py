"""Labels, the labelled predictions scored by them, and how good a module is asked to be."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, LargeBinary, String, Table

from cloud_hub.store.tables.base import Id, metadata

# What the right answer was. At most one row per prediction, device, module and output is not replaced.
labels = Table(
    "labels",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("prediction_id", String(200), nullable=False, index=True),
    Column("device", String(63), nullable=False),  # "": any that has made the prediction
    Column("module", String(63), nullable=False),  # "": any that has made it
    Column("output", String(200), nullable=False),  # "": the module's main one
    Column("value", JSON, nullable=False),  # a class by name or place, a number, or a list of numbers
    Column("weight", Float, nullable=False),
    Column("at", Float, nullable=False),  # when it was given; the newest counts
    Column("received_at", Float, nullable=False),
    Column("author", String(80), nullable=False),
    Column("replaced_at", Float),  # null: counts
    Column("state", String(16), nullable=False),  # waiting (no sample yet), joined, unusable
    Column("reason", String(63), nullable=False),  # why it is unusable
    Index("ix_labels_state_id", "state", "id"),
)
# A sampled prediction and its label, per output: what quality is summed from. It outlives the sample.
outcomes = Table(
    "outcomes",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("prediction_id", String(200), nullable=False, index=True),
    Column("device", String(63), nullable=False),
    Column("module", String(63), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("output", String(200), nullable=False),
    Column("at", Float, nullable=False),  # of the prediction, by the device's clock
    Column("day", Integer, nullable=False),  # the same in days since the epoch
    Column("joined_at", Float, nullable=False),
    Column("stratum", String(63), nullable=False),
    Column("probability", Float, nullable=False),  # of the sample
    Column("weight", Float, nullable=False),  # the label's, divided by it
    Column("kind", String(16), nullable=False),  # class, number
    Column("predicted", Float, nullable=False),  # a number, or the place of a class (-1: of no known class)
    Column("truth", Float, nullable=False),
    Column("error", Float, nullable=False),  # class: 0 or 1; number: predicted minus truth
    Column("confidence", Float),  # the largest score
    Column("bin", Integer),  # of the confidence, of ten equal ones
    Column("cell", Integer),  # of the confidence, of the reference profile's
    Column("log_loss", Float),
    Column("brier", Float),
    Column("scores", LargeBinary),  # float32, little-endian: a corrected label is scored without the sample
    Index("ix_outcomes_manifest_sha256_output_at", "manifest_sha256", "output", "at"),
    Index("ix_outcomes_manifest_sha256_output_device_at", "manifest_sha256", "output", "device", "at"),
)
# How good a module is asked to be: worse than this is an alert.
quality_bounds = Table(
    "quality_bounds",
    metadata,
    Column("module", String(63), primary_key=True),
    Column("output", String(200), primary_key=True),
    Column("metric", String(16), nullable=False),  # accuracy (at least), mae (at most)
    Column("bound", Float, nullable=False),
    Column("set_at", Float, nullable=False),
    Column("set_by", String(80), nullable=False),
)
