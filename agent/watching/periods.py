"""Which windows are open, and into which of them a row falls: by its event time, or by when it arrived.

A window's borders are multiples of its length. The current one takes what arrives without an event time, and what has
one in it. It is closed when its end is over: at once as long as no row of this worker had an event time, else after a
grace. A row whose window is closed opens one more for the same time, which is sent by itself; few are open at once.
Pure but for what profilers do; the time is always given. Called by `agent.watching.windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from agent.watching.profiler import Profiler
from agent.watching.tensors import Arrays
from modules.sampling import SamplingPolicy

MAX_OPEN = 8
MAX_SPARE = 2
MAX_EARLY = 64  # closed for lack of room, per length of a window: rows that need more are counted as they arrive
FUTURE_S = 60.0  # a sensor's clock may be ahead of ours
MAX_AGE_S = 7 * 86_400.0
USUAL_GRACE_S = 30.0
_ROUNDING = 1e-6  # of a window: a multiple of its length may be a little less than itself in floating point


class Period:
    """One open window. `is_late`: it was closed before, and gathers what came afterwards. `opened` is steady time."""

    __slots__ = ("index", "is_late", "length", "opened", "profiler", "rows")

    def __init__(self, index: int, length: float, profiler: Profiler | None, opened: float, is_late: bool) -> None:
        self.index = index
        self.length = length
        self.profiler = profiler
        self.opened = opened
        self.is_late = is_late
        self.rows = 0

    @property
    def start(self) -> float:
        return self.index * self.length

    @property
    def end(self) -> float:
        return (self.index + 1) * self.length

    def add(self, rows: int, inputs: Arrays, outputs: Arrays) -> None:
        """Without tensors where nobody could read them: such rows are in no cell."""
        self.rows += rows
        if self.profiler is not None and (inputs or outputs):
            self.profiler.add(rows, inputs, outputs)


class Periods:
    """`make` gives a profiler that has counted nothing yet; `steady` is the clock of `Period.opened`."""

    def __init__(
        self, make: Callable[[], Profiler | None], policy: SamplingPolicy, steady: Callable[[], float], now: float
    ) -> None:
        self._make = make
        self._steady = steady
        self._spare: list[Profiler] = []
        self._timed = False  # whether a row had an event time
        self.begin(policy, now)

    def begin(self, policy: SamplingPolicy, now: float) -> None:
        """Anew, with the current period alone; what was open is `take_all`'s."""
        self._length = policy.window_s
        said = policy.grace_s
        self._grace = min(USUAL_GRACE_S, self._length / 2) if isinstance(said, msgspec.UnsetType) else said
        self._others: dict[int, Period] = {}
        self._ripe: list[Period] = []
        self._early = 0
        self.current = self._opened(self._index(now), is_late=False)
        self._closed_below = self.current.index

    @property
    def due(self) -> float:
        """When there is something to do next."""
        return min([self.current.end, *(one.end + self._grace for one in self._others.values() if not one.is_late)])

    def add_at(self, when: float, now: float, rows: int, inputs: Arrays, outputs: Arrays) -> bool:
        """Rows of one event time. False where that cannot be, and they are counted as they arrived."""
        period = self._at(when, now)
        (period or self.current).add(rows, inputs, outputs)
        return period is not None

    def turn(self, now: float) -> Period | None:
        """The period that was the current one, where it is over; it stays open until it is ripe."""
        left = self.current
        if now < left.end - self._length * _ROUNDING:
            return None
        for late in [one for one in self._others.values() if one.is_late]:
            self._let_go(late)
        self._others[left.index] = left
        self._early = 0
        self.current = self._opened(self._index(now), is_late=False)
        return left

    def take_ripe(self, now: float) -> list[Period]:
        """What is to be closed: after its grace, with the turn if it was late, or for lack of room."""
        grace = self._grace if self._timed else 0.0
        for period in list(self._others.values()):
            if not period.is_late and now >= period.end + grace - self._length * _ROUNDING:
                self._let_go(period)
        self._closed_below = max(self._closed_below, min(self.current.index, self._index(now - grace)))
        ripe, self._ripe = self._ripe, []
        return ripe

    def take_all(self) -> list[Period]:
        """Everything, the current one last. Call `begin` before anything else is added."""
        return [*self._ripe, *self._others.values(), self.current]

    def give_back(self, profiler: Profiler) -> None:
        """One that was closed, to be used again: making one takes long where features are many."""
        if len(self._spare) < MAX_SPARE:
            self._spare.append(profiler)

    def _at(self, when: float, now: float) -> Period | None:
        self._timed = True
        if not now - MAX_AGE_S <= when <= now + FUTURE_S:  # nor is NaN
            return None
        index = self._index(when)
        if index >= self.current.index:
            return self.current
        period = self._others.get(index)
        if period is None:
            if len(self._others) >= MAX_OPEN:
                if self._early >= MAX_EARLY:
                    return None
                self._early += 1
                self._let_go(self._others[min(self._others)])
            period = self._others[index] = self._opened(index, is_late=index < self._closed_below)
        return period

    def _let_go(self, period: Period) -> None:
        del self._others[period.index]
        self._ripe.append(period)
        self._closed_below = max(self._closed_below, period.index + 1)

    def _opened(self, index: int, *, is_late: bool) -> Period:
        profiler = self._spare.pop() if self._spare else self._make()
        return Period(index, self._length, profiler, self._steady(), is_late)

    def _index(self, when: float) -> int:
        return math.floor(when / self._length + _ROUNDING)
