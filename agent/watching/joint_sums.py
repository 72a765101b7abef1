"""Adds up the joint features of one period. Their meaning stands in `modules.windows.Joint`; called by `profiler`."""

from __future__ import annotations

import numpy as np

from agent.backends import Array
from modules.joint import JointMap
from modules.windows import ReferenceProfile, pack_joint

WORTH_ROWS = 1024  # gathered before they are looked at: a few by themselves cost as much


class JointSums:
    """Sums of the joint features of one period. A block whose inputs do not come in rows, all of them, is left out.

    What blocks give is gathered until it is worth the work.
    """

    def __init__(self, reference: ReferenceProfile) -> None:
        self._map = JointMap(reference)
        self._rows, self._total = 0, np.zeros(self._map.dimensions)
        self._found: list[tuple[list[int], Array]] = []
        self._in_order = list(range(len(self._map.inputs)))
        self._gathered: list[Array] = []
        self._waiting = 0  # rows
        self.stride = 1

    def begin(self, stride: int) -> None:
        self._found, self.stride = [], stride

    def put(self, places: list[int], values: Array) -> None:
        """(inputs, rows)."""
        self._found.append((places, values))

    def end(self) -> None:
        found, self._found = self._found, []
        sizes = {values.shape[1] for _, values in found}
        if len(sizes) != 1 or sum(len(places) for places, _ in found) != len(self._in_order):
            return
        size = sizes.pop()
        if found[0][0] == self._in_order:
            rows = found[0][1]
        else:
            rows = np.empty((len(self._in_order), size))
            for places, values in found:
                rows[places] = values
        self._gathered.append(rows)
        self._waiting += size
        if self._waiting >= WORTH_ROWS:
            self._add_up()

    def _add_up(self) -> None:
        gathered, self._gathered, self._waiting = self._gathered, [], 0
        if gathered:
            count, total = self._map.sums(np.concatenate(gathered, axis=1).T)
            self._rows += count
            self._total += total

    def take(self) -> bytes:
        """Begins anew."""
        self._add_up()
        rows, self._rows = self._rows, 0
        white = self._map.whitened(rows, self._total)
        self._total[:] = 0.0
        return pack_joint(rows, white) if rows else b""
