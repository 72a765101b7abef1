"""How many events one device may cause in the audit trail, which is kept for ever. What is beyond is counted.

Far above what an agent says (it tells the same thing once a minute), also after weeks without a connection. Used by
`ingest`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from cloud_hub.clock import Clock
from cloud_hub.limits import Limiter, Rate

EVENTS: Final = Rate(per_s=0.1, burst=5000.0)
MAX_DEVICES: Final = 100_000


class Allowance:
    """In memory: a hub that starts again begins with full buckets."""

    def __init__(self, clock: Clock, rate: Rate = EVENTS) -> None:
        self._bucket = Limiter("events of a device", rate, clock, MAX_DEVICES)
        self._missed: Counter[str] = Counter()

    def allows(self, device: str) -> bool:
        """Takes one from the device's allowance; where none is left, counts what is not recorded."""
        if self._bucket.try_take(device):
            return True
        if device in self._missed or len(self._missed) < MAX_DEVICES:
            self._missed[device] += 1
        return False

    def missed(self, device: str) -> int:
        """How many were not recorded since this was last asked."""
        return self._missed.pop(device, 0)
