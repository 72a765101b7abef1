"""Data sets by version, and retraining on them: plans and their runs."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, String, Table, Text

from cloud_hub.store.tables.base import metadata

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("module", String(63), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("query", JSON, nullable=False),  # datasets.wishes.NewDataset, with nothing left open
    Column("rows", BigInteger, nullable=False),
    Column("heldout_rows", BigInteger, nullable=False),
    Column("labelled_rows", BigInteger, nullable=False),
    Column("first_at", Float),  # of its samples, by the devices' clocks; null without rows
    Column("last_at", Float),
    Column("columns", JSON, nullable=False),  # list of {name, type}
    Column("files", JSON, nullable=False),  # list of {path, size, sha256}
    Column("run", String(63), nullable=False, index=True),  # the retraining run that it was built for, or empty
    Column("author", String(80), nullable=False),
    Column("created_at", Float, nullable=False),
)
# The highest version ever given, so that a deleted version's number is never used again.
dataset_counters = Table(
    "dataset_counters",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
)
retrain_plans = Table(
    "retrain_plans",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("module", String(63), nullable=False, index=True),
    Column("plan", JSON, nullable=False),  # retraining.plan.Plan
    Column("author", String(80), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("stopped_at", Float),  # null: it is run when it is due
    Column("due_at", Float),  # when the next run starts by itself; null: none is due
    Column("due_why", Text, nullable=False),
    Column("last_run_at", Float),
)
retrain_runs = Table(
    "retrain_runs",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("plan", String(63), nullable=False),
    Column("module", String(63), nullable=False),
    Column("state", String(24), nullable=False, index=True),
    Column("why", Text, nullable=False),  # what started it
    Column("actor", String(80), nullable=False),
    Column("runner", String(80), nullable=False),  # who trains, empty before
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("heard_at", Float),  # of the runner
    Column("finished_at", Float),
    Column("result", JSON, nullable=False),  # retraining.records.Result: what has come of it so far
    Index("ix_retrain_runs_plan_created_at", "plan", "created_at"),
)
