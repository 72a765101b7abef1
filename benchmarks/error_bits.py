"""How soon a detector sees that a model is wrong more often, from right and wrong alone: ours, river's, two dummies.

As in the field's comparison: 20,000 rows of a synthetic stream whose concept changes at row 10,000, ten seeds each, the
errors of a Gaussian naive Bayes that learns until then (a deployed model does not go on learning), and the same
streams without the change. `python benchmarks/error_bits.py [seeds]`, 10 unless given; some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from river import drift, naive_bayes
from river.datasets import synth

from benchmarks.common import median, report
from cloud_hub.monitoring.error_bits import ErrorBits

CHANGE, ROWS = 10_000, 20_000
FALSE_ALARM_ROWS = 200_000
MISSED = float(ROWS - CHANGE + 1)
STREAMS: dict[str, Callable[[bool, int], Any]] = {
    "sea": lambda changed, seed: synth.SEA(variant=2 if changed else 0, noise=0.1, seed=seed),
    "sine": lambda changed, seed: synth.Sine(classification_function=int(changed), seed=seed),
    "stagger": lambda changed, seed: synth.STAGGER(classification_function=int(changed), seed=seed),
    "agrawal": lambda changed, seed: synth.Agrawal(classification_function=2 if changed else 0, seed=seed),
}


class Ours:
    """Starts anew after an alarm, as river's detectors do."""

    def __init__(self) -> None:
        self._detector = ErrorBits(FALSE_ALARM_ROWS)

    def update(self, wrong: bool) -> bool:
        alarm = self._detector.update(float(wrong))
        if alarm:
            self._detector = ErrorBits(FALSE_ALARM_ROWS)
        return alarm


class River:
    def __init__(self, detector: Any) -> None:
        self._detector = detector

    def update(self, wrong: bool) -> bool:
        self._detector.update(wrong)
        return bool(self._detector.drift_detected)


class Dummy:
    def __init__(self, answer: bool) -> None:
        self._answer = answer

    def update(self, _: bool) -> bool:
        return self._answer


DETECTORS: dict[str, Callable[[], Ours | River | Dummy]] = {
    "ours": Ours,
    "hddm_w": lambda: River(drift.binary.HDDMW()),
    "hddm_a": lambda: River(drift.binary.HDDMA()),
    "adwin": lambda: River(drift.ADWIN()),
    "page_hinkley": lambda: River(drift.PageHinkley()),
    "ddm": lambda: River(drift.binary.DDM()),
    "always": lambda: Dummy(True),
    "never": lambda: Dummy(False),
}


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    alarms: dict[str, float] = dict.fromkeys(DETECTORS, 0.0)
    metrics: dict[str, float] = {}
    for name in STREAMS:
        delays: dict[str, list[float]] = {detector: [] for detector in DETECTORS}
        for seed in range(seeds):
            before, changed, calm = _errors(name, seed)
            for detector, make in DETECTORS.items():
                false, delay = _watch(make(), before, changed)
                alarms[detector] += false + _watch(make(), before + calm, [])[0]
                delays[detector].append(delay)
        metrics.update(_told(name, delays))
    rows = len(STREAMS) * seeds * (CHANGE + ROWS)
    print(f"alarms in {rows:,} rows without a change: {alarms}")
    metrics.update({f"false_alarms_{detector}": count for detector, count in alarms.items()})
    report("error_bits", {**metrics, "rows_without_change": rows})


def _errors(name: str, seed: int) -> tuple[list[bool], list[bool], list[bool]]:
    """Before the change; after it; and what would have come without it."""
    model = naive_bayes.GaussianNB()
    make = STREAMS[name]
    before = []
    for row, label in _rows(make(False, seed), CHANGE):
        before.append(model.predict_one(row) != label)
        model.learn_one(row, label)
    after = [
        [model.predict_one(row) != label for row, label in _rows(make(changed, seed + 1000), ROWS - CHANGE)]
        for changed in (True, False)
    ]
    return before, after[0], after[1]


def _rows(stream: Any, count: int) -> Iterator[tuple[dict[str, float], Any]]:
    for row, label in stream.take(count):
        yield {key: float(value) for key, value in row.items()}, label


def _watch(detector: Ours | River | Dummy, before: list[bool], after: list[bool]) -> tuple[int, float]:
    """Alarms before the change, and rows from the change (counted from 1) to the first alarm."""
    false = sum(detector.update(wrong) for wrong in before)
    delay = next((row for row, wrong in enumerate(after, 1) if detector.update(wrong)), MISSED)
    return false, delay


def _told(name: str, delays: dict[str, list[float]]) -> dict[str, float]:
    metrics = {}
    print(f"{name}: rows from the change to the alarm")
    for detector, found in delays.items():
        seen = sum(delay < MISSED for delay in found)
        print(f"  {detector:13} median {median(found):8.1f}  found {seen} of {len(found)}")
        metrics |= {f"delay_rows_{name}_{detector}": median(found), f"found_{name}_{detector}": seen}
    return metrics


if __name__ == "__main__":
    main()
