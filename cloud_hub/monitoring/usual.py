"""What the usual devices of a fleet count, look by look: the reference of "which one is odd?".

A fleet holds the odd one, too, and would seem odd to all others with it. So the quarter of the devices that differ most
from the rest is left out, and none of the others counts more than MOST_ROWS times the median. At most MAX_DEVICES are
read, drawn by their ids. Used by `bases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring import looks
from cloud_hub.monitoring.balance import thin
from cloud_hub.monitoring.effects import unbiased_psi
from cloud_hub.monitoring.evidence import IntArray
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.population import lot
from cloud_hub.monitoring.verdict import LookSeries

MAX_DEVICES: Final = 100
MIN_DEVICES: Final = 3  # of two that differ nobody knows which one is odd
LEFT_OUT: Final = 0.25
MOST_ROWS: Final = 4.0


@dataclass(frozen=True)
class Usual:
    """Counts per start of a look, of all usual devices, and of each of them."""

    counts: Mapping[float, IntArray]
    devices: Mapping[str, Mapping[float, IntArray]]

    def beside(self, device: str, own: LookSeries, cells: int) -> IntArray:
        """What the others count, a row per look of its own."""
        zeros = np.zeros(cells, np.int64)
        mine = self.devices.get(device, {})
        rows = [self.counts.get(start, zeros) - mine.get(start, zeros) for start in own.starts]
        return np.array(rows, np.int64).reshape(len(own), cells)


async def usual_of(connection: AsyncConnection, layout: Layout, manifest_sha256: str, since: float) -> Usual | None:
    """None where there are too few devices."""
    names = await looks.devices_of(connection, manifest_sha256, since, 100 * MAX_DEVICES)
    drawn = sorted(names, key=lot)[:MAX_DEVICES]
    series = await looks.series_of(connection, layout, manifest_sha256, drawn, since)
    return usual(layout, series) if len(series) >= MIN_DEVICES else None


def usual(layout: Layout, series: Mapping[str, LookSeries]) -> Usual:
    """Without the oddest devices. Pure."""
    totals = {device: one.counts.sum(axis=0) for device, one in series.items()}
    fleet = np.sum(list(totals.values()), axis=0)
    starts = layout.starts[:-1]
    odd = {
        device: float(unbiased_psi(own[np.newaxis], np.maximum(fleet - own, 0), starts).max())
        for device, own in totals.items()
    }
    leave = max(1, round(LEFT_OUT * len(odd)))
    kept = sorted(odd, key=lambda device: (odd[device], device))[:-leave]
    most = MOST_ROWS * float(np.median([series[device].rows.mean() for device in kept]))
    devices = {device: _thinned(series[device], most) for device in kept}
    counts: dict[float, IntArray] = {}
    for one in devices.values():
        for start, cells in one.items():
            counts[start] = counts[start] + cells if start in counts else cells
    return Usual(counts, devices)


def _thinned(one: LookSeries, most: float) -> dict[float, IntArray]:
    rows = zip(one.starts, one.counts, one.rows.tolist(), strict=True)
    return {start: thin(cells, most / count) if count > most else cells for start, cells, count in rows}
