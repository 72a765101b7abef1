"""What time it is, as a value that is passed in: rooms take a clock, tests give one that they set."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds since the epoch, UTC.
Clock = Callable[[], float]


def system_clock() -> float:
    """The machine's own clock."""
    return time.time()
