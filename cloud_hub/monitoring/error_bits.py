"""A detector of concept drift on a stream of errors, one row at a time. Pure; used by `cloud_hub.labels`.

Each row says how wrong one prediction was: 0 (right) to 1 (wrong), in the order of the predictions. The rate of errors
before a change is learned from the older three quarters of all rows, so that a slow change is not learned along with
it, and taken one and a half standard deviations higher than found, for what was learned is uncertain. After a change
the rate is one of a few higher ones. For each of them the detector keeps a Shiryaev-Roberts statistic: the sum, over
all rows at which the change may have begun, of the likelihood ratio since then. While errors are no more frequent than
that, the statistic less the number of rows is a supermartingale, so that the expected number of rows until a false
alarm is at least the threshold. Memory and work per row do not grow with the rows.

Source: Shiryaev-Roberts procedure with a mixture of alternatives, as an e-detector (Shin, Ramdas, Rinaldo,
"E-detectors: a nonparametric framework for sequential change detection", 2023).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

LEAST_ROWS: Final = 30  # of which the rate before a change is learned, before any change may begin
RISES: Final = (0.2, 0.4, 0.7, 1.1, 1.7, 2.5, 3.5, 5.0)  # of the odds of an error, natural logarithm
_PRIOR: Final = 0.5  # errors, and as many right answers, taken for granted
_OLDER: Final = 0.75  # share of the rows that the rate before a change is learned from
_CAUTION: Final = 1.5  # standard deviations
_MARK: Final = 1.05  # the rows between two marks of what was learned, as a ratio
_CEILING: Final = 10.0  # the sum stays below so many thresholds, so that an alarm ends when the errors do


class ErrorBits:
    """At most one false alarm in `false_alarm_rows` rows on average, for independent errors of a steady rate.

    `since` is the row, counted from 0, at which the change most likely began; None while there is no evidence.
    """

    def __init__(self, false_alarm_rows: float) -> None:
        """Raises ValueError unless `false_alarm_rows` is at least 1."""
        if not false_alarm_rows >= 1:
            raise ValueError(f"false_alarm_rows: expected at least 1, got {false_alarm_rows}")
        self.rows = 0
        self.rate: float | None = None
        self._threshold = false_alarm_rows
        self._errors = self._learned = 0.0
        self._marks: deque[tuple[float, float]] = deque()
        self._gains: tuple[tuple[float, float], ...] = ()
        self._sums = [0.0] * len(RISES)
        self._walks = [0.0] * len(RISES)
        self._begun = [0] * len(RISES)

    @property
    def alarm(self) -> bool:
        """Whether the evidence for a higher rate is above the threshold."""
        return sum(self._sums) >= self._threshold

    @property
    def since(self) -> int | None:
        best = max(range(len(RISES)), key=self._walks.__getitem__)
        return self._begun[best] if self._walks[best] > 0 else None

    def update(self, error: float, weight: float = 1.0) -> bool:
        """Take in one row; whether there is an alarm now. `weight`, in (0, 1], makes a row count for less.

        Raises ValueError when a number is out of its range.
        """
        if not 0 <= error <= 1 or not 0 < weight <= 1:
            raise ValueError(f"error {error}, weight {weight}: expected an error from 0 to 1, a weight above 0 to 1")
        if self._gains:
            self._weigh(error, weight)
        alarm = self.alarm
        if not alarm:  # what comes after a change says nothing of the rate before it
            self._learn(error, weight)
        self.rows += 1
        return alarm

    def _weigh(self, error: float, weight: float) -> None:
        """For errors between 0 and 1 the ratio is below the bet that has mean 1: exp is convex."""
        most, start = _CEILING * self._threshold, 1 / len(RISES)
        for place, (wrong, right) in enumerate(self._gains):
            gain = weight * (right + error * (wrong - right))
            self._sums[place] = min((self._sums[place] + start) * math.exp(gain), most)
            if self._walks[place] <= 0:
                self._walks[place], self._begun[place] = 0.0, self.rows
            self._walks[place] += gain

    def _learn(self, error: float, weight: float) -> None:
        self._errors += weight * error
        self._learned += weight
        if not self._marks or self._learned >= _MARK * self._marks[-1][0] + 1:
            self._marks.append((self._learned, self._errors))
        moved = False
        while len(self._marks) > 1 and self._marks[1][0] <= _OLDER * self._learned:
            self._marks.popleft()
            moved = True
        if moved and self._marks[0][0] >= LEAST_ROWS:
            self._take(*self._marks[0])

    def _take(self, rows: float, errors: float) -> None:
        """A new rate before the change, from the older part of what was learned."""
        self.rate = (errors + _PRIOR) / (rows + 2 * _PRIOR)
        spread = math.sqrt(self.rate * (1 - self.rate) / (rows + 2))
        before = min(self.rate + _CAUTION * spread, 1 - 1e-9)
        odds = math.log(before / (1 - before))
        gains = []
        for rise in RISES:
            after = 1 / (1 + math.exp(-odds - rise))
            gains.append((math.log(after / before), math.log((1 - after) / (1 - before))))
        self._gains = tuple(gains)
