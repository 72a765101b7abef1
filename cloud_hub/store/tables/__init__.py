"""Every table of the hub, as SQLAlchemy Core metadata. No queries here: each room keeps its own.

Times are seconds since the epoch (float, UTC). JSON columns hold what msgspec.to_builtins gives. Bytes that were
signed or received are kept exactly as they came. Alembic migrations under `migrations/` make this schema; a test
compares the two.
"""

from __future__ import annotations

from cloud_hub.store.tables.alerts import alert_changes, alerts, watch_counts, watches
from cloud_hub.store.tables.api import kept_requests, operations
from cloud_hub.store.tables.asking import blob_pieces, commands, sample_blobs
from cloud_hub.store.tables.base import metadata
from cloud_hub.store.tables.candidates import candidates
from cloud_hub.store.tables.configuration import configurations
from cloud_hub.store.tables.datasets import dataset_counters, datasets, retrain_plans, retrain_runs
from cloud_hub.store.tables.devices import assignments, devices, reported_modules, revocations
from cloud_hub.store.tables.events import events
from cloud_hub.store.tables.groups import device_groups, group_members, saved_queries
from cloud_hub.store.tables.labels import labels, outcomes, quality_bounds
from cloud_hub.store.tables.monitoring import look_scopes, looks, samples, streams, windows
from cloud_hub.store.tables.outward import cursors, deliveries, webhooks
from cloud_hub.store.tables.people import api_tokens, users
from cloud_hub.store.tables.privacy import privacy_spent
from cloud_hub.store.tables.registry import model_counters, model_files, model_versions, modules, patches
from cloud_hub.store.tables.replicas import leases
from cloud_hub.store.tables.rollouts import executions, rollout_counts, rollouts
from cloud_hub.store.tables.sites import site_devices, site_marks, sites
from cloud_hub.store.tables.trust import claim_tokens, director_files, image_files, pending_metadata

__all__ = [
    "alert_changes",
    "alerts",
    "api_tokens",
    "assignments",
    "blob_pieces",
    "candidates",
    "claim_tokens",
    "commands",
    "configurations",
    "cursors",
    "dataset_counters",
    "datasets",
    "deliveries",
    "device_groups",
    "devices",
    "director_files",
    "events",
    "executions",
    "group_members",
    "image_files",
    "kept_requests",
    "labels",
    "leases",
    "look_scopes",
    "looks",
    "metadata",
    "model_counters",
    "model_files",
    "model_versions",
    "modules",
    "operations",
    "outcomes",
    "patches",
    "pending_metadata",
    "privacy_spent",
    "quality_bounds",
    "reported_modules",
    "retrain_plans",
    "retrain_runs",
    "revocations",
    "rollout_counts",
    "rollouts",
    "sample_blobs",
    "samples",
    "saved_queries",
    "site_devices",
    "site_marks",
    "sites",
    "streams",
    "users",
    "watch_counts",
    "watches",
    "webhooks",
    "windows",
]
