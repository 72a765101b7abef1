"""Windows of devices without a model: rows drawn from the reference itself, so that nothing drifts.

Cells are drawn by the reference's counts, moments as those of standard rows. One `Draws` per reference and process.
Called by `device`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from itertools import accumulate
from math import sqrt

from modules.manifest import Manifest
from modules.windows import LATENCY_BINS, Numeric, ReferenceProfile, Window, encode_window, pack_counts

_LATENCY_BIN = 9  # half a millisecond to one


class Draws:
    """Windows of one module version."""

    def __init__(self, manifest: Manifest, manifest_sha256: str, profile: ReferenceProfile) -> None:
        self._module, self._manifest_sha256 = manifest.name, manifest_sha256
        self._reference_sha256 = manifest.file(manifest.reference).sha256
        self._weights = [list(accumulate(feature.counts)) for feature in profile.features]
        self._numeric = [isinstance(feature, Numeric) for feature in profile.features]

    def window(self, rows: int, start: float, end: float, name: str, chance: random.Random) -> bytes:
        """An encoded window of so many rows."""
        counts: list[int] = []
        moments: list[float] = []
        for weights, numeric in zip(self._weights, self._numeric, strict=True):
            cells = [0] * len(weights)
            for cell in _drawn(weights, rows, chance):
                cells[cell] += 1
            counts += cells
            if numeric:
                moments += _moments(rows, chance) if max(cells) < rows else (0.0, 0.0)
        latency = [0] * LATENCY_BINS
        latency[_LATENCY_BIN] = rows
        return encode_window(
            Window(
                module=self._module,
                manifest_sha256=self._manifest_sha256,
                reference_sha256=self._reference_sha256,
                start=start,
                end=end,
                rows=rows,
                errors=0,
                refused=0,
                counts=pack_counts(counts),
                moments=struct.pack(f"<{len(moments)}f", *moments),
                latency=pack_counts(latency),
                id=name,
            )
        )


def _drawn(weights: Sequence[int], rows: int, chance: random.Random) -> list[int]:
    if not weights[-1]:
        return [0] * rows
    return chance.choices(range(len(weights)), cum_weights=weights, k=rows)


def _moments(rows: int, chance: random.Random) -> tuple[float, float]:
    """Sum and sum of squares of so many standard normal rows, nearly."""
    total = chance.gauss(0.0, sqrt(rows))
    return total, max(total * total / rows, chance.gauss(rows, sqrt(2 * rows)))
