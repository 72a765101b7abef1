"""Signing for one device, without a database: its whole repository, or only the timestamp that says it still holds.

Pure apart from the keys that are handed in; `director` calls it for each device, and `benchmarks/director_signing.py`
measures it. The set changes when something is assigned, the timestamp every few days, so set and snapshot last long
and freshness costs one signature. Versions: targets and snapshot carry the device's director version; the timestamp
counts by itself, because freshness must be announced without a change of the set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuf.api.metadata import MetaFile, Snapshot, TargetFile, Targets, Timestamp

from cloud_hub.trust.keys import DIRECTOR_SNAPSHOT, DIRECTOR_TARGETS, DIRECTOR_TIMESTAMP, Keys
from cloud_hub.trust.signing import SHORT_LIFE_S, SignedFile, expiry, sign
from modules.targets import DEVICE_ID_FIELD

TARGETS_FILE: Final = "targets.json"
SNAPSHOT_FILE: Final = "snapshot.json"
TIMESTAMP_FILE: Final = "timestamp.json"
# Nobody gains by an old set whose timestamp has expired, so the set itself may last: signing it anew costs a device
# three downloads, the timestamp one.
SET_LIFE_S: Final = 90 * 86_400.0
FRESH_LIFE_S: Final = SHORT_LIFE_S


@dataclass(frozen=True)
class DeviceSet:
    """What one device shall run: targets by path, in the `version` of its director."""

    device: str
    version: int
    targets: Mapping[str, TargetFile]


def sign_set(keys: Keys, wanted: DeviceSet, timestamp_version: int, now: float) -> tuple[SignedFile, ...]:
    """Targets, snapshot and timestamp. Raises Conflict `offline-key` when the director's keys are not here."""
    version, expires = wanted.version, expiry(now, SET_LIFE_S)
    device = {DEVICE_ID_FIELD: wanted.device}
    targets = Targets(version, expires=expires, targets=dict(wanted.targets), unrecognized_fields=device)
    snapshot = Snapshot(version, expires=expires, meta={TARGETS_FILE: MetaFile(version)})
    return (
        sign(keys, targets, TARGETS_FILE, DIRECTOR_TARGETS),
        sign(keys, snapshot, SNAPSHOT_FILE, DIRECTOR_SNAPSHOT),
        sign_freshness(keys, version, timestamp_version, now),
    )


def sign_freshness(
    keys: Keys, snapshot_version: int, timestamp_version: int, now: float, life_s: float = FRESH_LIFE_S
) -> SignedFile:
    """A timestamp that says: the snapshot of this version is still the newest."""
    expires = expiry(now, life_s)
    stamp = Timestamp(timestamp_version, expires=expires, snapshot_meta=MetaFile(snapshot_version))
    return sign(keys, stamp, TIMESTAMP_FILE, DIRECTOR_TIMESTAMP)
