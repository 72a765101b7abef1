"""What a module's windows may tell of one person, as the signed policy says it, and the noise that follows. Pure.

Neighbouring: two days that differ in at most `rows_per_person` rows of each window, with the same number of rows. The
mechanism is the discrete Gaussian on every cell; what it spends is counted in zero-concentrated differential privacy
(rho), which adds up over windows. Used by the worker (noise), by the agent's accountant, and by the hub (evidence).

Sources: Bun and Steinke, Concentrated Differential Privacy (2016), proposition 1.3; Canonne, Kamath and Steinke, The
Discrete Gaussian for Differential Privacy (2020).
"""

from __future__ import annotations

import math

import msgspec

from modules.errors import ManifestError

DAY_S = 86_400.0
MAX_EPSILON = 1000.0


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most `epsilon_per_day`, at `delta`, for whoever is in at most `rows_per_person` rows of each window.

    Windows alone leave the device then: no samples, no moments, nothing that is not counted into cells.
    """

    epsilon_per_day: float
    delta: float = 1e-6
    rows_per_person: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon_per_day <= MAX_EPSILON:
            raise ManifestError(
                f"privacy.epsilon_per_day: expected above 0 to {MAX_EPSILON:g}, got {self.epsilon_per_day}"
            )
        if not 0.0 < self.delta <= 0.01:
            raise ManifestError(f"privacy.delta: expected above 0 to 0.01, got {self.delta}")
        if not 1 <= self.rows_per_person <= 1_000_000:
            raise ManifestError(f"privacy.rows_per_person: expected 1 to 1000000, got {self.rows_per_person}")

    @property
    def rho_per_day(self) -> float:
        """What may be spent in a day: the largest rho with rho + 2 sqrt(rho ln(1/delta)) <= epsilon_per_day."""
        logarithm = math.log(1 / self.delta)
        return (math.sqrt(logarithm + self.epsilon_per_day) - math.sqrt(logarithm)) ** 2

    def rho_per_window(self, window_s: float) -> float:
        """An equal share for each window of the day."""
        return self.rho_per_day / max(1, math.ceil(DAY_S / window_s))

    def distance(self, features: int) -> float:
        """How far one person moves the cells of all features: each row leaves a cell and enters another (L2)."""
        return self.rows_per_person * math.sqrt(2.0 * features)

    def scale(self, features: int, window_s: float) -> float:
        """The standard deviation of the noise of each cell, in rows."""
        return self.distance(features) / math.sqrt(2.0 * self.rho_per_window(window_s))


def epsilon_of(rho: float, delta: float) -> float:
    """What a spent rho amounts to at `delta`."""
    return rho + 2.0 * math.sqrt(rho * math.log(1 / delta))


class Spent(msgspec.Struct, frozen=True):
    """What one module of a device has spent on one day (UTC, as 2026-11-21); `withheld` windows found nothing left."""

    module: str
    day: str
    rho: float
    windows: int = 0
    withheld: int = 0
