"""How often somebody may ask: token buckets, so many keys at most. Pure but for the clock that is passed in.

Called by `api.gate` before a request is worked on.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from cloud_hub.clock import Clock
from cloud_hub.errors import TooMany

MAX_KEYS: Final = 10_000
IPV6_PREFIX: Final = 64  # what one subscriber gets: single addresses cost an attacker nothing


@dataclass(frozen=True)
class Rate:
    """`per_s` requests per second on average, `burst` at once."""

    per_s: float
    burst: float


class Limiter:
    """One bucket per key. When there are too many keys, the one that asked longest ago is forgotten."""

    def __init__(self, what: str, rate: Rate, clock: Clock, max_keys: int = MAX_KEYS) -> None:
        self._what = what
        self._rate = rate
        self._clock = clock
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (tokens, at)

    def take(self, key: str) -> None:
        """Raises TooMany `rate-limited` when the key's bucket is empty; then nothing is taken."""
        wait_s = self.wait_s(key)
        if wait_s > 0:
            # Rounded up: a client that waits exactly so long gets in.
            raise TooMany(
                "rate-limited",
                f"{self._what}: expected at most {self._rate.per_s:g} per second; try again in {math.ceil(wait_s)} s",
                retry_after_s=math.ceil(wait_s),
            )
        self._put(key, self._level(key) - 1)

    def try_take(self, key: str) -> bool:
        try:
            self.take(key)
        except TooMany:
            return False
        return True

    def left(self, key: str) -> float:
        """How much the key may still take at once."""
        return self._level(key)

    def spend(self, key: str, amount: float) -> None:
        """Takes what was used already, up to all that is left."""
        self._put(key, max(0.0, self._level(key) - amount))

    def wait_s(self, key: str) -> float:
        """Seconds until the next request of the key is taken; 0 for at once."""
        return max(0.0, (1 - self._level(key)) / self._rate.per_s)

    def forget(self, key: str) -> None:
        """The key begins anew with a full bucket."""
        self._buckets.pop(key, None)

    def __len__(self) -> int:
        return len(self._buckets)

    def _level(self, key: str) -> float:
        now = self._clock()
        tokens, at = self._buckets.get(key, (self._rate.burst, now))
        # max: a clock that was set back must not take tokens away.
        return min(self._rate.burst, tokens + max(0.0, now - at) * self._rate.per_s)

    def _put(self, key: str, level: float) -> None:
        self._buckets[key] = (level, self._clock())
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)


def network_of(address: str | None) -> str:
    """What counts as one sender: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
