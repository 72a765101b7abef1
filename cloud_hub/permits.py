"""What devices were found to be allowed a moment ago, so that a download does not ask the database for each block.

Only permissions are kept, never refusals; each for PERMIT_S, and not beyond a change of what is assigned to the device
that this process makes. Used by `serving`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PERMIT_S: Final = 2.0
MAX_PERMITS: Final = 20_000


class Permits:
    """By device, and what the device asked for. `now` gives seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[str, dict[tuple[str, str], float]] = {}
        self._count = 0

    def holds(self, device: str, name: str, grant: str = "") -> bool:
        """Whether `keep` was called for this a moment ago."""
        return self._until.get(device, {}).get((name, grant), 0.0) > self._now()

    def keep(self, device: str, name: str, grant: str = "") -> None:
        if self._count >= MAX_PERMITS:
            self._until.clear()
            self._count = 0
        kept = self._until.setdefault(device, {})
        self._count += (name, grant) not in kept
        kept[name, grant] = self._now() + PERMIT_S

    def forget(self, device: str) -> None:
        """What the device may have has changed."""
        self._count -= len(self._until.pop(device, {}))
