"""The three ways to take a difference between two versions, each with an interval that holds at all times. Pure.

What varies from look to look averages out, and is covered at all times at once (`sequential.mean_of`). Which devices
an arm happens to hold does not average out, and is covered by the interval over the devices (`sequential.spread`).
The allowance is shared among all parts of an interval. Used by `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from cloud_hub.arms.measure import Measure
from cloud_hub.arms.sequential import LEAST_DEVICES, FloatArray, Mean, mean_of, spread

Design = Literal["paired", "switched", "arms", "none"]
MAX_WEIGHT: Final = 4.0  # times the median: no look counts for more

Key = tuple[str, float]  # device, start of the look


@dataclass
class Arm:
    """All measures of one version: name -> (device, look) -> measure; `keys` and `devices` have any."""

    measures: dict[str, dict[Key, Measure]] = field(default_factory=dict)
    keys: set[Key] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    rows: int = 0

    def add(self, device: str, start: float, found: Iterable[Measure], rows: int) -> None:
        self.rows += rows
        for measure in found:
            self.measures.setdefault(measure.name, {})[(device, start)] = measure
            self.keys.add((device, start))
            self.devices.add(device)


@dataclass(frozen=True)
class Estimate:
    """A difference with half the width of its interval (infinite: not yet known), and what it is of."""

    value: float
    half: float
    units: int
    devices: int
    candidate: float
    baseline: float


def design_of(candidate: Arm, baseline: Arm) -> Design:
    """The strongest that the data allow. A device that changes versions has one look with both: that is no pairing."""
    if not candidate.keys or not baseline.keys:
        return "none"
    if 2 * len(candidate.keys & baseline.keys) >= len(candidate.keys):
        return "paired"
    return "switched" if candidate.devices & baseline.devices else "arms"


def paired(new: Mapping[Key, Measure], old: Mapping[Key, Measure], alpha: float) -> Estimate | None:
    keys = _in_order(new.keys() & old.keys())
    if not keys:
        return None
    values = {
        key: Measure(new[key].name, new[key].value - old[key].value, min(new[key].rows, old[key].rows)) for key in keys
    }
    mean, half, devices = _covered(values, alpha)
    return Estimate(mean.value, half, mean.units, devices, _average(new, keys), _average(old, keys))


def switched(new: Mapping[Key, Measure], old: Mapping[Key, Measure], alpha: float) -> Estimate | None:
    """Each look with the candidate against the device's own past, less how the others have changed since.

    What is not known of the pasts, and of the others' change, widens the interval.
    """
    switched = {device for device, _ in new}
    past = _means(old, switched)
    keys = _in_order(key for key in new if key[0] in past)
    if not keys:
        return None
    others = _changes_of_others(old, switched, since=keys[0][1])
    by_look = _by_look(others)
    usual = _average(others, list(others)) if others else 0.0  # in looks in which none of the others was heard
    values = {key: _less(new[key], past[key[0]] + by_look.get(key[1], usual)) for key in keys}
    mean, half, devices = _covered(values, alpha / 3)
    around_past = {key: _less(one, past[key[0]]) for key, one in old.items() if key[0] in past}
    half += _covered(around_past, alpha / 3)[1]
    if others:
        half += _covered(others, alpha / 3)[1]
    before = _average(old, _in_order(key for key in old if key[0] in past))
    return Estimate(mean.value, half, mean.units, devices, before + mean.value, before)


def between(new: Mapping[Key, Measure], old: Mapping[Key, Measure], alpha: float) -> Estimate | None:
    """Two arms of different devices. A handful against others says only which they are: then nothing is known."""
    (one, half, devices), (other, other_half, others) = _covered(new, alpha / 2), _covered(old, alpha / 2)
    enough = min(devices, others) >= LEAST_DEVICES
    return Estimate(
        one.value - other.value,
        half + other_half if enough else math.inf,
        min(one.units, other.units),
        min(devices, others),
        one.value,
        other.value,
    )


def _covered(units: Mapping[Key, Measure], alpha: float) -> tuple[Mean, float, int]:
    """Mean of the units (looks of devices, in order of time), half the width of its interval, number of devices."""
    keys = _in_order(units)
    values = np.array([units[key].value for key in keys])
    rows = np.array([units[key].rows for key in keys], np.float64)
    mean = mean_of(values, _weights(rows), int(rows.sum()), alpha / 2)
    per_device = np.array(list(_means(units, {device for device, _ in keys}).values()))
    return mean, mean.half + spread(per_device, alpha / 2), len(per_device)


def _changes_of_others(old: Mapping[Key, Measure], switched: set[str], since: float) -> dict[Key, Measure]:
    """Of devices that kept the baseline: how each look from `since` on differs from their own past before."""
    earlier = {key: one for key, one in old.items() if key[0] not in switched and key[1] < since}
    past = _means(earlier, {device for device, _ in earlier})
    return {key: _less(one, past[key[0]]) for key, one in old.items() if key[0] in past and key[1] >= since}


def _less(one: Measure, value: float) -> Measure:
    return Measure(one.name, one.value - value, one.rows)


def _in_order(keys: Iterable[Key]) -> list[Key]:
    return sorted(keys, key=lambda key: (key[1], key[0]))


def _by_look(units: Mapping[Key, Measure]) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for (_, start), one in units.items():
        found.setdefault(start, []).append(one.value)
    return {start: float(np.mean(values)) for start, values in found.items()}


def _weights(rows: FloatArray) -> FloatArray:
    return np.minimum(rows, MAX_WEIGHT * np.median(rows)) if len(rows) else rows


def _means(side: Mapping[Key, Measure], devices: set[str]) -> dict[str, float]:
    """Each device's mean, by rows."""
    sums: dict[str, tuple[float, int]] = {}
    for (device, _), one in side.items():
        if device in devices:
            total, rows = sums.get(device, (0.0, 0))
            sums[device] = (total + one.value * one.rows, rows + one.rows)
    return {device: total / rows for device, (total, rows) in sums.items() if rows}


def _average(side: Mapping[Key, Measure], keys: Sequence[Key]) -> float:
    rows = sum(side[key].rows for key in keys)
    return sum(side[key].value * side[key].rows for key in keys) / rows if rows else math.nan
