"""Whether somebody has set the wall clock: it is held against one that nobody sets.

Called by `agent.watching.windows`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_S = 1.0  # less is how clocks are kept right, a little at a time
_AT_ONCE_S = 0.1
_TRIES = 3


def steady_s() -> float:
    """Seconds that go on while the device sleeps, where the system counts these."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class ClockWatch:
    """`jumped` tells once of each jump. Slow changes, such as a time server's, never add up to one."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = self._read()

    def jumped(self) -> float:
        """Seconds by which the wall clock was set since the last time this was asked; 0 where it was not."""
        before, self._offset = self._offset, self._read()
        jump = self._offset - before
        return jump if abs(jump) >= JUMP_S else 0.0

    def _read(self) -> float:
        """The wall clock less the steady one, both read at once: a process may be held up in between."""
        before, wall, after = self._steady(), self._wall(), self._steady()
        for _ in range(_TRIES):
            if after - before < _AT_ONCE_S:
                break
            before, wall, after = self._steady(), self._wall(), self._steady()
        return wall - before
