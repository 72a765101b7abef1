"""A detector of concept drift on a stream of errors, one row at a time. Pure; used by `cloud_hub.labels`.

Each row says how wrong one prediction was: 0 (right) to 1 (wrong), in the order of the predictions. The rate of errors
before a change is learned from all rows (a Beta posterior); after it, the rate is one of a grid of higher ones. For
each of them the detector keeps a Shiryaev-Roberts statistic: the sum, over all rows at which the change may have
begun, of the likelihood ratio since then. While nothing changes, their weighted sum less the number of rows is a
martingale, so the expected number of rows until a false alarm is at least the threshold. Memory and work per row do
not grow.

Source: Shiryaev-Roberts procedure with a mixture of alternatives, as an e-detector (Shin, Ramdas, Rinaldo,
"E-detectors: a nonparametric framework for sequential change detection", 2023).
"""

from __future__ import annotations

import math
from typing import Final

PRIOR_ERRORS: Final = 0.5
PRIOR_ROWS: Final = 1.0
LEAST_ROWS: Final = 30  # of which the rate before a change is learned, before any change may begin
_ODDS_STEP: Final = 0.4  # natural logarithm of the odds, from one rate of the grid to the next
_STEPS: Final = 13
_CEILING: Final = 10.0  # the sum stays below so many thresholds, so that an alarm ends when the errors do


class ErrorBits:
    """At most one false alarm in `false_alarm_rows` rows on average, for independent errors of a steady rate.

    `since` is the row, counted from 0, at which the change most likely began; None while there is no evidence.
    """

    def __init__(self, false_alarm_rows: float) -> None:
        if not false_alarm_rows >= 1:
            raise ValueError(f"false_alarm_rows: expected at least 1, got {false_alarm_rows}")
        self.rows = 0
        self._threshold = false_alarm_rows
        self._errors, self._learned = PRIOR_ERRORS, PRIOR_ROWS
        self._sums = [0.0] * _STEPS
        self._walks = [0.0] * _STEPS
        self._begun = [0] * _STEPS

    @property
    def rate(self) -> float:
        """The rate of errors before a change, as learned so far."""
        return self._errors / self._learned

    @property
    def alarm(self) -> bool:
        """Whether the evidence for a higher rate is above the threshold."""
        return sum(self._sums) >= self._threshold

    @property
    def since(self) -> int | None:
        best = max(range(_STEPS), key=self._walks.__getitem__)
        return self._begun[best] if self._walks[best] > 0 else None

    def update(self, error: float, weight: float = 1.0) -> bool:
        """Take in one row; whether there is an alarm now. `weight`, in (0, 1], makes a row count for less.

        Raises ValueError when a number is out of its range.
        """
        if not 0 <= error <= 1 or not 0 < weight <= 1:
            raise ValueError(f"error {error}, weight {weight}: expected an error from 0 to 1, a weight above 0 to 1")
        if self._learned >= LEAST_ROWS:
            self._weigh(error, weight)
        if not self.alarm:  # what comes after a change says nothing of the rate before it
            self._errors += weight * error
            self._learned += weight
        self.rows += 1
        return self.alarm

    def _weigh(self, error: float, weight: float) -> None:
        before = self.rate
        odds = math.log(before / (1 - before))
        start = 1.0 / _STEPS
        for step in range(_STEPS):
            after = 1 / (1 + math.exp(-odds - _ODDS_STEP * (step + 1)))
            gain = weight * (error * math.log(after / before) + (1 - error) * math.log((1 - after) / (1 - before)))
            grown = (self._sums[step] + start) * math.exp(gain)
            self._sums[step] = min(grown, _CEILING * self._threshold)
            if self._walks[step] <= 0:
                self._walks[step], self._begun[step] = 0.0, self.rows
            self._walks[step] += gain
