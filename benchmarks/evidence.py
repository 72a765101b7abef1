"""How often drift is called without a change, and how soon with one: ours, the usual defaults, and two dummies.

All rules see the same rows: 20 features, 100 rows per look, a reference drawn anew for every simulated month of 720
looks. Ours sees them as counts, through the same functions as the hub, at the threshold of at most one false alarm in
7,200 looks over 20 features and all of their tests. `python benchmarks/evidence.py [months]`, 300 unless given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._rivals import RULES, Reference
from benchmarks.common import median, report
from cloud_hub.monitoring.effects import effect
from cloud_hub.monitoring.evidence import MONTH_S, AlarmRate
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.verdict import LookSeries, group_threshold, judge, strength
from cloud_hub.reference import profile_training
from modules.tensors import TensorSpec
from modules.windows import Numeric

Array = np.ndarray[Any, np.dtype[Any]]

FEATURES, ROWS, LOOKS, CHANGE = 20, 100, 720, 300
RATE = AlarmRate(months=10, look_s=MONTH_S / LOOKS, groups=1)
SIZES = (30, 100, 300, 1000, 3000, 10_000)
NOMINAL = 0.05
DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape),
    "t3": lambda rng, shape: rng.standard_t(3, size=shape),
    "discrete": lambda rng, shape: rng.poisson(3.0, size=shape).astype(float),
}


class World:
    """A reference, what the hub makes of it, and counts of rows in its cells."""

    def __init__(self, training: Array) -> None:
        profile = profile_training({"x": training}, {}, [TensorSpec("x", "FP64", (-1, training.shape[1]))], [])
        self.layout = Layout(profile)
        self.reference = Reference(training)
        self.threshold = group_threshold(self.layout, RATE)
        self._edges = [np.array(f.edges) for f in profile.inputs if isinstance(f, Numeric)]

    def counts(self, rows: Array) -> Array:
        """(looks, rows, features) becomes (looks, cells)."""
        parts = [_count(rows[..., index], edges) for index, edges in enumerate(self._edges)]
        return np.concatenate(parts, axis=1)

    def alarms(self, counts: Array) -> bool:
        return bool(strength(self.layout, counts, "drift").max() >= self.threshold)


def main() -> None:
    months = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    rng = np.random.default_rng(0)
    metrics = {**_size(rng), **_outlier(rng), **_speed(rng)}
    for shift, runs in ((0.1, 100), (0.25, 100), (0.5, 100)):
        metrics.update(_delay(rng, shift, runs))
    metrics.update(_false_alarms(rng, months))
    report("evidence", metrics)


def _count(values: Array, edges: Array) -> Array:
    """Cells per look, as `count_numeric` counts them, for values without NaN."""
    bins = len(edges) - 1
    places = np.minimum(np.searchsorted(edges, values, side="right") - 1, bins - 1)
    places = np.where(values > edges[-1], bins + 1, np.where(values < edges[0], bins, places))
    offset = np.arange(len(values))[:, np.newaxis] * (bins + 3)
    return np.bincount((places + offset).ravel(), minlength=len(values) * (bins + 3)).reshape(len(values), bins + 3)


def _size(rng: np.random.Generator) -> dict[str, float]:
    """Share of single looks, without a change, whose evidence says 20 to 1 or more; the others at their own rule."""
    worst: dict[str, float] = {}
    least = 1.0
    print(f"share of {FEATURES * 20} features flagged without a change, 10,000 reference rows, per rows in a look")
    for name, draw in DRAWS.items():
        for rows in SIZES:
            flagged: dict[str, list[float]] = {}
            for _ in range(20):
                world = World(draw(rng, (10_000, FEATURES)))
                look = draw(rng, (rows, FEATURES))
                evidence = world.layout.scan(world.counts(look[np.newaxis])).drift[0]
                flagged.setdefault("ours", []).append(float((evidence >= -np.log(NOMINAL)).mean()))
                flagged.setdefault("chance", []).append(_by_chance(world, look))
                for rule, call in RULES.items():
                    flagged.setdefault(rule, []).append(float(call(world.reference, look).mean()))
            shares = {rule: float(np.mean(values)) for rule, values in flagged.items()}
            print(f"  {name:10}{rows:7}  " + "  ".join(f"{rule} {share:.3f}" for rule, share in shares.items()))
            worst = {rule: max(worst.get(rule, 0.0), share) for rule, share in shares.items()}
            least = min(least, shares["chance"])
    return {**{f"size_worst{_suffix(rule)}": share for rule, share in worst.items()}, "size_least_chance": least}


def _by_chance(world: World, look: Array) -> float:
    """Share of features whose counts are as far off as happens by chance in one look of twenty."""
    counts = world.counts(look[np.newaxis])[0]
    layout = world.layout
    found = [
        effect(layout.drift_counts(counts, index), layout.drift_counts(layout.reference, index)).p <= NOMINAL
        for index in range(FEATURES)
    ]
    return float(np.mean(found))


def _outlier(rng: np.random.Generator) -> dict[str, float]:
    """Verdicts that one row of 1e6 in the newest look changes, of those with and without a change."""
    flips = dict.fromkeys(["ours", *RULES], 0)
    total = 0
    for shift in (0.0, 0.5):
        for _ in range(50):
            world = World(rng.normal(size=(10_000, FEATURES)))
            rows = rng.normal(size=(8, ROWS, FEATURES))
            rows[:, :, 0] += shift
            spoiled = rows.copy()
            spoiled[-1, 0, 0] = 1e6
            total += 1
            flips["ours"] += world.alarms(world.counts(rows)) != world.alarms(world.counts(spoiled))
            for rule, call in RULES.items():
                verdicts = call(world.reference, rows[-1]), call(world.reference, spoiled[-1])
                flips[rule] += int(verdicts[0][0] != verdicts[1][0])
    print(f"verdicts of {total} changed by one row of 1e6: {flips}")
    return {f"outlier_flips{_suffix(rule)}": count for rule, count in flips.items()}


def _delay(rng: np.random.Generator, shift: float, runs: int) -> dict[str, float]:
    """Looks from the change (counted from 1) to the first alarm; beyond the end of the month it is missed."""
    label = f"{shift:g}".replace(".", "")
    delays: dict[str, list[float]] = {}
    for _ in range(runs):
        world = World(rng.normal(size=(10_000, FEATURES)))
        rows = rng.normal(size=(LOOKS, ROWS, FEATURES))
        rows[CHANGE:, :, 0] += shift
        counts = world.counts(rows)
        ours = (end for end in range(CHANGE + 1, LOOKS + 1) if world.alarms(counts[:end]))
        delays.setdefault("ours", []).append(next(ours, np.inf) - CHANGE)
        for rule, call in RULES.items():
            theirs = (end for end in range(CHANGE + 1, LOOKS + 1) if call(world.reference, rows[end - 1]).any())
            delays.setdefault(rule, []).append(next(theirs, np.inf) - CHANGE)
    metrics = {}
    print(f"a shift of {shift} sd in one feature at look {CHANGE}, {runs} runs: looks until any alarm, share missed")
    for rule, found in delays.items():
        missed = float(np.isinf(found).mean())
        print(
            f"  {rule:18} median {median(found):6.1f}  90 % {np.quantile(found, 0.9, method='lower'):6.1f}"
            f"  missed {missed:.2f}"
        )
        metrics[f"delay_looks_{label}sd{_suffix(rule)}"] = min(median(found), LOOKS - CHANGE + 1.0)
        metrics[f"missed_{label}sd{_suffix(rule)}"] = missed
    return metrics


def _false_alarms(rng: np.random.Generator, months: int) -> dict[str, float]:
    """Looks in which an alarm begins, per 7,200 looks without a change."""
    begun: dict[str, int] = dict.fromkeys(["ours", *RULES], 0)
    looked: dict[str, int] = dict.fromkeys(["ours", *RULES], 0)
    peaks = []
    for month in range(months):
        world = World(rng.normal(size=(2_000 if month % 2 else 10_000, FEATURES)))
        rows = rng.normal(size=(LOOKS, ROWS, FEATURES))
        peaks.append(_peaks(world, world.counts(rows)))
        _add(begun, looked, "ours", peaks[-1] >= world.threshold)
        if month < 10:  # the others are many times slower, and ten months tell enough of them
            for rule, call in RULES.items():
                _add(begun, looked, rule, np.array([call(world.reference, look).any() for look in rows]))
    rates = {rule: begun[rule] / looked[rule] * 7200 for rule in begun}
    print(
        f"looks with an alarm (ours: alarms that begin) per 7,200 without a change, {months} months: "
        + ", ".join(f"{rule} {rate:.2f}" for rule, rate in rates.items())
    )
    highest = np.sort(np.concatenate(peaks))[::-1]
    print(f"threshold {world.threshold:.2f} nats, highest evidence {highest[0]:.2f}")
    rates = {f"false_alarms_per_7200_looks{_suffix(rule)}": rate for rule, rate in rates.items()}
    return {**rates, "months": months, "threshold_nats": world.threshold, "highest_without_change": highest[0]}


def _peaks(world: World, counts: Array) -> Array:
    ends = range(1, len(counts) + 1)
    return np.array([strength(world.layout, counts[max(end - 130, 0) : end], "drift").max() for end in ends])


def _add(begun: dict[str, int], looked: dict[str, int], rule: str, alarms: Array) -> None:
    """Ours holds an alert open; the others say each look anew, so that each counts."""
    fresh = alarms & ~np.concatenate([[False], alarms[:-1]]) if rule == "ours" else alarms
    begun[rule] += int(fresh.sum())
    looked[rule] += len(alarms)


def _speed(rng: np.random.Generator) -> dict[str, float]:
    world = World(rng.normal(size=(10_000, FEATURES)))
    counts = world.counts(rng.normal(size=(LOOKS, ROWS, FEATURES)))
    starts = tuple(float(start) for start in range(LOOKS))
    series = LookSeries(starts, counts, np.zeros((LOOKS, 2 * FEATURES)))
    times = {"judge_ms": [], "strength_ms": []}
    for _ in range(20):
        for name, call in _timed(world, series):
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1e3)
    found = {name: median(values) for name, values in times.items()}
    print(f"one group, {FEATURES} features: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def _timed(world: World, series: LookSeries) -> Iterator[tuple[str, Any]]:
    yield "judge_ms", lambda: judge(world.layout, series, RATE)
    yield "strength_ms", lambda: strength(world.layout, series.counts, "drift")


def _suffix(rule: str) -> str:
    return "" if rule == "ours" else f"_{rule}"


if __name__ == "__main__":
    main()
