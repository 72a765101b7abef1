"""Makes windows private, where the policy promises it: noise in every cell, and nothing that carries none.

What cannot be made private does not leave: the error goes to whoever closes windows, and the window is lost. Rows,
errors, refusals and latencies are told as they are. Called by `agent.watching.windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from modules.sampling import SamplingPolicy
from modules.windows import ReferenceProfile, Window, pack_signed

if TYPE_CHECKING:
    from agent.watching.noise import Noise


class Private:
    """Windows over the features of `reference`, under the promise made last; plain ones while none was made."""

    def __init__(self, reference: ReferenceProfile | None) -> None:
        self._features = 0 if reference is None else len(reference.features)
        self._policy = SamplingPolicy()
        self._noise: Noise | None = None

    def promise(self, policy: SamplingPolicy) -> None:
        """What holds for the windows closed from now on."""
        self._policy, self._noise = policy, None

    def made(self, window: Window, cells: Sequence[int]) -> Window:
        """Raises PrivacyError."""
        privacy = self._policy.privacy
        if not privacy:
            return window
        window = msgspec.structs.replace(window, moments=b"", joint=b"", still=b"")
        if not self._features:
            return msgspec.structs.replace(window, rho=privacy.rho_per_window(self._policy.window_s))
        if self._noise is None:
            from agent.watching.noise import Noise  # costs a worker that needs none 17 MiB

            self._noise = Noise(privacy, self._features, self._policy.window_s)
        noise = self._noise
        return msgspec.structs.replace(
            window, counts=pack_signed(noise.add(cells)), rho=noise.rho, noise=noise.variance
        )
