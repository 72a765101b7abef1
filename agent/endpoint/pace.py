"""How long runs of a model take, by rows: what decides where they run, and whether running together pays. Pure."""

from __future__ import annotations

from collections.abc import Sequence

QUICK_US = 300.0
TRIES = 3  # runs of a size before its time is believed: the first ones prepare
# One by one, what is run together may take this long. A net that is slower gains nothing from it on a processor, and
# what the runtime allocates for many of its rows it keeps: 580 MiB in place of 100 for a MobileNetV2 and 32 pictures.
TOGETHER_US = 10_000.0
GAIN = 0.9  # of the time one by one, that running together may take
_STEP = 1.05  # the running median moves by this factor per run
_SIZES = 48


class Pace:
    """A running median, kept per power of two of rows. Threads may learn at once: a lost step is no harm."""

    def __init__(self) -> None:
        self._typical_us = [0.0] * _SIZES
        self._seen = [0] * _SIZES

    def typical_us(self, rows: int) -> float:
        """0 when no run of that size, nor a smaller one, has been seen."""
        size = min(rows.bit_length(), _SIZES - 1)
        if not self._typical_us[size]:
            known = next((i for i in range(size - 1, -1, -1) if self._typical_us[i]), None)
            return 0.0 if known is None else self._typical_us[known] * 2.0 ** (size - known)
        return self._typical_us[size]

    def is_quick(self, rows: int) -> bool:
        return 0.0 < self.typical_us(rows) < QUICK_US

    def quick_rows(self, most: int) -> int:
        """Up to how many rows together stay quick."""
        while most > 1 and not self.is_quick(most):
            most //= 2
        return most

    def pays(self, rows: Sequence[int]) -> bool:
        """Whether requests of these sizes are worth running together; a size that was hardly tried is tried."""
        if len(rows) < 2:
            return True
        alone_us, total = sum(map(self.typical_us, rows)), sum(rows)
        if alone_us > TOGETHER_US:
            return False
        if self._seen[min(total.bit_length(), _SIZES - 1)] < TRIES:
            return True
        return self.typical_us(total) <= GAIN * alone_us

    def learn(self, rows: int, took_us: float) -> None:
        size = min(rows.bit_length(), _SIZES - 1)
        seen = self._typical_us[size]
        if self._seen[size] < TRIES:
            self._seen[size] += 1
            self._typical_us[size] = min(seen, took_us) if seen else took_us
        else:
            self._typical_us[size] = seen * _STEP if took_us > seen else seen / _STEP
