"""A device's distance: when what it says arrives, and when it hears. In order, as TCP does it. Pure."""

from __future__ import annotations

import random

from cloud_hub.simulator.profile import Link

REPEATED_S = 0.3  # how much later a segment comes that was lost once


class Way:
    """One direction of one device's link. Bytes follow each other; a lost one holds up those behind it."""

    __slots__ = ("_arrived_at", "_free_at", "_link")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_at = self._arrived_at = 0.0

    def delay_s(self, size: int, now: float, chance: random.Random) -> float:
        """How long from now until these bytes are through."""
        link = self._link
        self._free_at = max(self._free_at, now) + (size / (link.kib_per_s * 1024) if link.kib_per_s else 0.0)
        late = REPEATED_S if link.loss and chance.random() < link.loss else 0.0
        self._arrived_at = max(self._arrived_at, self._free_at + link.delay_ms / 1000 + late)
        return self._arrived_at - now
