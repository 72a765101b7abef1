"""Candidate against baseline: one difference per measure, with an interval that may be looked at all the time. Pure.

Three designs, the first that the data allow:

- **paired**: both versions ran on the same devices in the same looks (a shadow, or requests split on the device).
- **switched**: devices ran the baseline and then the candidate. The change of devices that kept the baseline meanwhile
  is taken off; without such devices nobody knows whether the world has changed at the same time, and it says so.
- **arms**: some devices ran the candidate and others the baseline at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from cloud_hub.arms.designs import Arm, Design, Key, between, design_of, paired, switched
from cloud_hub.arms.margins import Margins
from cloud_hub.arms.measure import LATENCY, Measure, Role, role_of

Word = Literal["worse", "better", "not worse", "same", "different", "undecided"]


class MeasuredDifference(msgspec.Struct, frozen=True):
    """Candidate less baseline in one measure; `low` and `high` cover it at all times together (null: not yet known).

    `latency` is in octaves: 1 is twice as slow. Health and quality are better when they are lower. `units` are looks of
    devices. `design` is that of the comparison, or `arms` where no device has this measure of both versions.
    """

    name: str
    role: Role
    candidate: float
    baseline: float
    difference: float
    low: float | None
    high: float | None
    margin: float
    word: Word
    design: Design
    units: int
    devices: int


class Comparison(msgspec.Struct, frozen=True):
    """`verdict`: worse (some health or quality is), fine (none is worse by more than its margin), else undecided.

    `generalises` is false when too few devices took part to say anything of others; `controlled` is false when the
    world may have changed between the two versions' times.
    """

    module: str
    candidate: int
    baseline: int
    design: Design
    verdict: Literal["worse", "fine", "undecided"]
    generalises: bool
    controlled: bool
    candidate_devices: int
    baseline_devices: int
    candidate_rows: int
    baseline_rows: int
    since: float | None
    until: float | None
    alpha: float
    differences: tuple[MeasuredDifference, ...]


_ESTIMATES = {"paired": paired, "switched": switched, "arms": between}


def compare(
    candidate: Arm, baseline: Arm, margins: Margins, alpha: float
) -> tuple[Design, bool, tuple[MeasuredDifference, ...]]:
    """Design, whether it is controlled, and the differences of all measures that both have; the worst news first.

    `alpha` is the chance of any wrong word at any time, shared among the measures of each role.
    """
    design = design_of(candidate, baseline)
    names = [name for name in candidate.measures if name in baseline.measures]
    kept = baseline.devices - candidate.devices
    controlled = design != "switched" or bool(kept)
    found = []
    for name in names:
        share = alpha / sum(role_of(other) == role_of(name) for other in names)
        difference = _difference(design, name, candidate.measures[name], baseline.measures[name], margins, share)
        if difference is not None:
            found.append(difference)
    order = ("worse", "different", "undecided", "better", "not worse", "same")
    return design, controlled, tuple(sorted(found, key=lambda d: (d.role == "answers", order.index(d.word), d.name)))


def verdict_of(differences: Sequence[MeasuredDifference]) -> Literal["worse", "fine", "undecided"]:
    judged = [difference for difference in differences if difference.role != "answers"]
    if any(difference.word == "worse" for difference in judged):
        return "worse"
    return "fine" if judged and all(d.word in ("better", "not worse") for d in judged) else "undecided"


def _difference(
    design: Design, name: str, new: Mapping[Key, Measure], old: Mapping[Key, Measure], margins: Margins, alpha: float
) -> MeasuredDifference | None:
    # In one order, so that sums of fractions are the same whatever order the looks were read in.
    new, old = dict(sorted(new.items())), dict(sorted(old.items()))
    found = _ESTIMATES[design](new, old, alpha)
    if found is None:  # labels, say, that no device has of both versions
        design, found = "arms", between(new, old, alpha)
    if found is None or not math.isfinite(found.value):
        return None
    known = math.isfinite(found.half)
    low, high = (found.value - found.half, found.value + found.half) if known else (None, None)
    margin, role = _margin(margins, name), role_of(name)
    return MeasuredDifference(
        name=name, role=role, candidate=found.candidate, baseline=found.baseline, difference=found.value, low=low,
        high=high, margin=margin, word=_word(role, low, high, margin), design=design, units=found.units,
        devices=found.devices,
    )  # fmt: skip


def _margin(margins: Margins, name: str) -> float:
    """In the unit of the measure."""
    if name == LATENCY:
        return math.log2(margins.slower)
    role = role_of(name)
    if role == "health":
        return float(getattr(margins, name))
    return margins.quality if role == "quality" else margins.answers


def _word(role: Role, low: float | None, high: float | None, margin: float) -> Word:
    if low is None or high is None:
        return "undecided"
    if role == "answers":
        if low > margin or high < -margin:
            return "different"
        return "same" if -margin < low and high < margin else "undecided"
    if low > margin:
        return "worse"
    if high < 0:
        return "better"
    return "not worse" if high < margin else "undecided"
