"""Windows of one reference, many at once: from the bytes of the wire to integers in arrays, a row per window. Pure.

Each window is held against its reference; one that does not fit is refused with a text and left out. The rows of the
others add up exactly, in any order. Used by `intake`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import numpy as np

from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.tallies import NUMBERS, TICK, Tally, moment_ticks
from cloud_hub.monitoring.varints import AnyInts, BoolArray, IntArray, signed, unpack_many
from modules.windows import JOINT_MOST, JOINT_TICK, LATENCY_BINS, Window, pack_counts

MAX_ROWS: Final = 2**40  # of one window; keeps sums of many windows far from the end of 64 bits
MAX_NOISE: Final = 2.0**30  # variance per cell
SURE: Final = 64.0  # standard deviations that no noise reaches
_LIMITS: Final = dict.fromkeys(NUMBERS[1:-1], MAX_ROWS) | {"noise": MAX_NOISE}
_NAMES: Final = (*_LIMITS, "counts", "moments", "latency", "joint", "still")
_FIELDS: Final = attrgetter(*_NAMES)


@dataclass(frozen=True)
class Stack:
    """Windows, a row each. `numbers` are in the order of `tallies.NUMBERS`."""

    numbers: IntArray
    counts: AnyInts
    moments: IntArray
    latency: AnyInts
    joint: IntArray
    still: AnyInts

    def __len__(self) -> int:
        return len(self.numbers)

    def total(self, places: Sequence[int] | None = None) -> Tally:
        """The sum of all windows, or of some of them."""
        parts = [getattr(self, field.name) for field in fields(self)]
        if places is not None:
            parts = [part[places] for part in parts]
        numbers, *arrays = (part.sum(axis=0, dtype=np.int64) for part in parts)
        return Tally(*numbers.tolist(), *arrays)

    def one(self, place: int) -> Tally:
        return Tally(*self.numbers[place].tolist(), *(getattr(self, f.name)[place] for f in fields(self)[1:]))


def stack(windows: Sequence[Window], layout: Layout) -> tuple[Stack, list[int], dict[int, str]]:
    """The windows that fit the layout, their places among `windows`, and why each of the others does not."""
    reading = _Reading(windows, layout)
    found = reading.read()
    if not reading.refused:
        return found, list(range(len(windows))), {}
    places = [place for place in range(len(windows)) if place not in reading.refused]
    return Stack(*(getattr(found, field.name)[places] for field in fields(found))), places, reading.refused


class _Reading:
    """One pass over many windows, one question after the other. The first that a window fails is why it is refused."""

    def __init__(self, windows: Sequence[Window], layout: Layout) -> None:
        self._windows = windows
        self._layout = layout
        # A column per field: asking each window for each field would take longer than all the arithmetic.
        columns = zip(*map(_FIELDS, windows), strict=True) if windows else iter([()] * len(_NAMES))
        self._of: dict[str, tuple[Any, ...]] = dict(zip(_NAMES, columns, strict=True))
        self.refused: dict[int, str] = {}

    def read(self) -> Stack:
        numbers = self._numbers()
        private = numbers[:, -1] > 0
        moments = self._moments(private)
        counts = self._unpack(self._of["counts"], self._layout.cells, "counts")
        none = _zeros(LATENCY_BINS)
        latency = self._unpack([packed or none for packed in self._of["latency"]], LATENCY_BINS, "latency")
        if private.any():
            counts = np.where(private[:, None], signed(counts), counts)
        self._check_counts(numbers, counts, latency, private)
        return Stack(numbers, counts, moments, latency, self._joint(numbers), self._still())

    def _require(self, holds: BoolArray, why: Callable[[Window], str]) -> None:
        if not holds.all():
            for place in np.flatnonzero(~holds).tolist():
                self.refused.setdefault(place, why(self._windows[place]))

    def _numbers(self) -> IntArray:
        """As floats first, which hold whatever number was sent; those within the bounds exactly."""
        found = [np.ones(len(self._windows))]
        for name, most in _LIMITS.items():
            values = np.array(self._of[name], np.float64)
            holds = (values >= 0) & (values <= most)
            self._require(holds, lambda w, n=name, m=most: f"expected {n} from 0 to {m:.0f}, got {getattr(w, n)}")  # type: ignore[misc]
            found.append(np.where(holds, values, 0))
        found[-1] = np.ceil(found[-1] / TICK)  # above 0 where there is any noise
        return np.stack(found, axis=1).astype(np.int64)

    def _moments(self, private: BoolArray) -> IntArray:
        """Private windows have none."""
        size, sent = 8 * self._layout.numeric, self._of["moments"]
        lengths = np.fromiter(map(len, sent), np.int64, len(sent))
        self._require(
            lengths == np.where(private, 0, size), lambda w: f"expected {size} bytes of moments, got {len(w.moments)}"
        )
        zeros = bytes(size)
        data = b"".join(sent if (lengths == size).all() else [m if len(m) == size else zeros for m in sent])
        return moment_ticks(np.frombuffer(data, "<f4").reshape(len(sent), size // 4))

    def _unpack(self, packed: Sequence[bytes], cells: int, what: str) -> AnyInts:
        counts, fits = unpack_many(packed, cells)
        self._require(fits, lambda _: f"expected {cells} numbers as {what}, got others")
        return counts

    def _check_counts(self, numbers: IntArray, counts: AnyInts, latency: AnyInts, private: BoolArray) -> None:
        rows = numbers[:, 1]
        small = (np.abs(counts).max(axis=1, initial=0) <= MAX_ROWS) & (latency.max(axis=1, initial=0) <= MAX_ROWS)
        counted = _per_feature(counts if small.all() else np.where(small[:, None], counts, 0), self._layout)
        # Noise has no bound, but what is far from any that could be drawn was not drawn.
        slack = np.where(private, SURE * np.sqrt(numbers[:, -1] * TICK * max(1, self._layout.cells)) + 1, 0)
        holds = small & (np.abs(counted).max(axis=1, initial=0) <= rows + slack)
        holds &= latency.sum(axis=1, dtype=np.float64) <= MAX_ROWS
        self._require(holds, lambda w: f"expected at most {w.rows} rows counted per feature, got more")

    def _joint(self, numbers: IntArray) -> IntArray:
        """(windows, 0) where no window has any."""
        there = np.fromiter(map(bool, self._of["joint"]), np.bool_, len(self._windows))
        if not there.any():
            return np.zeros((len(there), 0), np.int64)
        dimensions = self._layout.joint.dimensions if self._layout.joint is not None else 0
        none = _zeros(1 + dimensions)
        packed = self._unpack([data or none for data in self._of["joint"]], 1 + dimensions, "joint features")
        joint = signed(packed)
        rows, most = joint[:, 0], np.abs(joint[:, 1:]).max(axis=1, initial=0)
        fits = (rows >= 0) & (rows <= numbers[:, 1]) & (most <= rows * (JOINT_MOST / JOINT_TICK))
        fits &= (dimensions > 0) | ~there
        self._require(fits, lambda w: f"expected joint features of at most {w.rows} rows of this reference, got others")
        return joint

    def _still(self) -> AnyInts:
        features, sent = self._layout.numeric, self._of["still"]
        if not any(sent):
            return np.zeros((len(sent), features), np.uint8)
        size = (features + 7) // 8
        lengths = np.fromiter(map(len, sent), np.int64, len(sent))
        self._require(
            (lengths == 0) | (lengths == size),
            lambda w: f"expected {size} bytes of features that stood still, got {len(w.still)}",
        )
        data = b"".join(bits if len(bits) == size else bytes(size) for bits in sent)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(len(sent), 8 * size)
        return bits[:, :features]


def _per_feature(counts: AnyInts, layout: Layout) -> AnyInts:
    if not layout.cells:
        return np.zeros((len(counts), 1), np.int64)
    wide = np.uint32 if counts.dtype == np.uint8 else np.int64  # cells are a million at most
    return np.asarray(np.add.reduceat(counts, layout.starts[:-1], axis=1, dtype=wide))


@lru_cache(maxsize=64)
def _zeros(cells: int) -> bytes:
    """What a window without them would have sent."""
    return pack_counts([0] * cells)
