"""Noise for the cells of a private window, by OpenDP's discrete Gaussian. Worker side.

Imported only where the policy asks for privacy: the library costs a worker about 17 MiB. OpenDP itself states what a
release spends; it is held against the policy before anything is released. Called when a window is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.errors import AgentError
from modules.privacy import Privacy

if TYPE_CHECKING:
    from opendp.mod import Measurement

_SLACK = 1e-9  # of a share: OpenDP rounds what it states upwards


class PrivacyError(AgentError):
    """Windows cannot be made private here."""

    key = "privacy-unavailable"


class Noise:
    """The mechanism for windows of `features` features and `window_s` seconds.

    Raises PrivacyError where OpenDP is not installed.
    """

    def __init__(self, privacy: Privacy, features: int, window_s: float) -> None:
        try:
            from opendp.domains import atom_domain, vector_domain
            from opendp.measurements import make_gaussian
            from opendp.metrics import l2_distance
            from opendp.mod import enable_features
        except ImportError as error:
            raise PrivacyError(
                "the policy asks for private windows, and OpenDP is not installed here (mooring[privacy]): "
                "no window of this module leaves"
            ) from error
        enable_features("contrib")
        distance = privacy.distance(features)
        self.rho = privacy.rho_per_window(window_s) * (1 + _SLACK)
        self._scale = privacy.scale(features, window_s)
        domain = vector_domain(atom_domain(T="i64"))
        self._measure: Measurement = make_gaussian(domain, l2_distance(T="f64"), scale=self._scale)
        stated: float = self._measure.map(distance)  # type: ignore[no-untyped-call] # not typed there
        if not stated <= self.rho:
            raise PrivacyError(f"expected a release to spend at most {self.rho:g}, got {stated:g}")

    @property
    def variance(self) -> float:
        """Of the noise of one cell."""
        return self._scale**2

    def add(self, cells: Sequence[int]) -> list[int]:
        """The counts with noise; they may be below zero."""
        noisy: list[int] = self._measure(list(cells))
        return noisy
