"""How many devices may begin now: so many a minute, more once enough have succeeded. Pure.

Source: AWS IoT Jobs, exponential rollout rate (base rate, increment factor, criteria, maximum). There every step needs
devices that were notified or succeeded; here only devices that are verified healthy count.
"""

from __future__ import annotations

import math

import msgspec

MAX_PER_MINUTE = 1e6
BURST_S = 5.0  # what was not used of the last seconds may be used at once


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`per_minute` devices begin; times `factor` for every `after` that are verified, up to `max_per_minute`."""

    per_minute: float
    factor: float = 1.0
    after: int = 100
    max_per_minute: float = MAX_PER_MINUTE

    def __post_init__(self) -> None:
        if not 0 < self.per_minute <= self.max_per_minute <= MAX_PER_MINUTE:
            most = min(self.max_per_minute, MAX_PER_MINUTE)
            raise ValueError(f"rate: expected more than 0 and at most {most:g} devices a minute, got {self.per_minute}")
        if not 1 <= self.factor <= 100:
            raise ValueError(f"rate factor: expected 1 to 100, got {self.factor}")
        if self.after < 1:
            raise ValueError(f"rate after: expected at least 1 verified device, got {self.after}")

    def speed(self, verified: int) -> float:
        """Devices a minute once so many are verified."""
        if self.factor == 1:
            return self.per_minute
        steps = min(verified // self.after, math.ceil(math.log(MAX_PER_MINUTE / self.per_minute, self.factor)) + 1)
        return float(min(self.max_per_minute, self.per_minute * self.factor**steps))


class Allowance(msgspec.Struct, frozen=True):
    """How many devices may begin at once, as of `at` (seconds since the epoch)."""

    at: float
    devices: float

    def spent(self, count: int) -> Allowance:
        return Allowance(self.at, max(0.0, self.devices - count))


def allowance(rate: Rate, before: Allowance | None, verified: int, now: float) -> Allowance:
    """What may begin now. The first device may begin at once; time that was not used is lost but for a moment of it."""
    if before is None:
        return Allowance(now, 1.0)
    speed = rate.speed(verified) / 60
    return Allowance(now, min(max(1.0, speed * BURST_S), before.devices + speed * max(0.0, now - before.at)))


def next_at(rate: Rate, left: Allowance, verified: int) -> float:
    """When one more device may begin."""
    return left.at + max(0.0, 1.0 - left.devices) * 60 / rate.speed(verified)
