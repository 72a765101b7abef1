"""What privacy costs: looks until a drift is found in a fleet whose windows carry noise, and without.

Devices of 100 rows an hour in hourly windows of 20 features; the promise is epsilon a day for each device at delta
1e-6. One feature of a normal value moves by 0.25 or 0.1 standard deviations; the reference has 10,000 rows. The
threshold is that of one false alarm in 7,200 looks over 20 features. A delay of -1 was more than 100 looks.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.common import median, report
from cloud_hub.monitoring.evidence import MAX_LOOKS, WINDOWS, log_bayes_factor
from cloud_hub.monitoring.noisy import evidence
from modules.privacy import Privacy

FEATURES, ROWS, REFERENCE, LOOK_S = 20, 100, 10_000, 3600.0
BEFORE, AFTER, RUNS = 30, 100, 20
THRESHOLD = math.log(7200 * FEATURES)
EDGES = np.array([-1.2816, -0.8416, -0.5244, -0.2533, 0.0, 0.2533, 0.5244, 0.8416, 1.2816])
STARTS = np.zeros(1, np.int64)


def main() -> None:
    rng = np.random.default_rng(0)
    metrics: dict[str, float] = {}
    for devices in (100, 1_000, 10_000):
        for shift in (0.25, 0.1):
            for epsilon in (None, 8.0, 3.0, 1.0):
                name = f"delay_looks_{shift:g}sd_{devices}_devices" + (f"_eps{epsilon:g}" if epsilon else "")
                runs = [_delay(rng, devices, shift, epsilon) for _ in range(RUNS)]
                found = median([math.inf if delay is None else delay for delay in runs])
                metrics[name] = -1.0 if math.isinf(found) else found
                print(f"{name:45} {metrics[name]:6g}")
    quiet = [_delay(rng, 1_000, 0.0, 3.0) for _ in range(5 * RUNS)]
    metrics["false_alarms_of_100_streams_eps3"] = float(sum(delay is not None for delay in quiet))
    report("privacy", metrics)


def _delay(rng: np.random.Generator, devices: int, shift: float, epsilon: float | None) -> float | None:
    """Looks from the change to the first alarm; None without one."""
    sigma = Privacy(epsilon).scale(FEATURES, LOOK_S) * math.sqrt(devices) if epsilon else 0.0
    reference = rng.multinomial(REFERENCE, _shares(0.0))
    shifts = [0.0] * BEFORE + [shift] * AFTER
    drawn = [rng.multinomial(devices * ROWS, _shares(moved)) for moved in shifts]
    looks = np.array(drawn) + np.rint(rng.normal(0, sigma, (len(drawn), len(reference)))).astype(np.int64)
    for look in range(BEFORE, BEFORE + AFTER):
        if _evidence(looks[: look + 1], reference, sigma).max() >= THRESHOLD:
            return look - BEFORE + 1
    return None


def _evidence(looks: np.ndarray, reference: np.ndarray, sigma: float) -> np.ndarray:
    sums = np.cumsum(looks[::-1][:MAX_LOOKS], axis=0)
    spans = np.array([min(window, len(sums)) for window in WINDOWS])
    if not sigma:
        return log_bayes_factor(sums[spans - 1], reference, STARTS)
    return evidence(sums[spans - 1], reference, STARTS, spans * sigma**2)


def _shares(shift: float) -> np.ndarray:
    below = np.array([0.5 * math.erfc(-(edge - shift) / math.sqrt(2)) for edge in EDGES])
    return np.diff([0.0, *below, 1.0])


if __name__ == "__main__":
    main()
