"""Who is behind the evidence of a fleet: each device's share, and whether a few devices explain all of it.

Reads looks of devices one by one. Used by `alerts` once a fleet has evidence for a change.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import numpy as np

from cloud_hub.monitoring import looks
from cloud_hub.monitoring.alert_book import DeviceShare
from cloud_hub.monitoring.evidence import WINDOWS, IntArray
from cloud_hub.monitoring.finding import Finding
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.verdict import LookSeries, strength
from cloud_hub.store.engine import Store

MAX_DEVICES: Final = 200  # those with most rows; a fleet's evidence does not hang on the others
MAX_SHOWN: Final = 20


@dataclass(frozen=True)
class Spread:
    """`explained`: without the devices that alarm by themselves, a minority, the fleet does not alarm."""

    devices: tuple[DeviceShare, ...]
    explained: bool


async def share_out(store: Store, manifest_sha256: str, finding: Finding, window: int) -> Spread:
    """Split the fleet's evidence in its alarming window of looks (an index) among its devices."""
    fleet = finding.looks
    since = fleet.starts[-min(WINDOWS[window], len(fleet))]
    rest = fleet.counts.copy()
    own: dict[str, float] = {}
    suspects = 0
    async with store.read() as connection:
        devices = await looks.devices_of(connection, manifest_sha256, fleet.starts[0], MAX_DEVICES)
        for device in devices:
            # All of a device's looks, also from before it was last found calm: they are in the fleet's as well.
            series = await looks.series(connection, finding.layout, Group(manifest_sha256, device), fleet.starts[0])
            own[device], alarming = await asyncio.to_thread(_own_evidence, finding, series, since)
            if alarming:
                suspects += 1
                _take_out(rest, fleet, series)
    few = suspects == 1 or suspects < len(devices) / 2
    calm = strength(finding.layout, rest, finding.kind).max() < finding.threshold
    return Spread(_shares(own), bool(suspects and few and calm))


def _own_evidence(finding: Finding, series: LookSeries, since: float) -> tuple[float, bool]:
    """Evidence of the device's looks from `since` on, and whether the device alarms by itself."""
    latest = series.counts[[start >= since for start in series.starts]]
    evidence = float(strength(finding.layout, latest.sum(axis=0, keepdims=True), finding.kind).max())
    alarming = strength(finding.layout, series.counts, finding.kind).max() >= finding.threshold
    return evidence, bool(alarming)


def _take_out(rest: IntArray, fleet: LookSeries, series: LookSeries) -> None:
    places = {start: place for place, start in enumerate(fleet.starts)}
    for start, counts in zip(series.starts, series.counts, strict=True):
        if start in places:
            rest[places[start]] -= counts
    # A device's look may have grown between the two readings.
    np.maximum(rest, 0, out=rest)


def _shares(own: dict[str, float]) -> tuple[DeviceShare, ...]:
    total = sum(max(value, 0.0) for value in own.values())
    ranked = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:MAX_SHOWN]
    return tuple(DeviceShare(device, max(value, 0.0) / total if total else 0.0, value) for device, value in ranked)
