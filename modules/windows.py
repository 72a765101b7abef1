"""The reference profile, the cells that a device counts into, and the bytes of a window.

The signed module carries a ReferenceProfile: bins from the training data's quantiles, with their counts. A device
counts every row into those cells; merging is integer addition, so it is exact in any order. No NumPy here: the
worker counts with arrays (`agent.watching.profiler`), the hub merges with arrays (`cloud_hub.monitoring`).

Cells of a numeric feature with edges e0 <= ... <= eK, in order: K bins ([ei, ei+1), the last one closed), under
(< e0), over (> eK), missing (NaN). Cells of a categorical feature: one per category, unknown, missing.
Moments of a numeric feature: sum of z and sum of z*z over rows that are not missing, z = (x - mean) / scale.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from modules.errors import MALFORMED, WindowError

MAX_REFERENCE_BYTES = 16 * 1024 * 1024
MAX_CELLS = 1_000_000
LATENCY_BINS = 32  # bin i counts predictions that took [2^i, 2^(i+1)) microseconds
JOINT_CUT = 4.0  # standard deviations: one wild value moves no more than any other
JOINT_TICK = 1 / 8  # unit of the sums sent, a small part of the standard deviation of one row
JOINT_MOST = 4096.0  # standard deviations: no row of any values can move a sum further, so no window may say so
MAX_DIMENSIONS = 512
STILL_ROWS = 30


Take = Literal[
    "column", "max", "length", "brightness", "contrast", "sharpness", "energy", "crossings", "projection"
]  # fmt: skip


class Numeric(msgspec.Struct, frozen=True, tag="numeric", omit_defaults=True):
    """A number per row: `take` says how it is read from `tensor`.

    `column` is the row's flat element `index` (true is 1) and `max` its largest element. `length` is the number of
    bytes of the text at `index`. Of all elements of a row: `brightness` is their mean, `contrast` their standard
    deviation, `energy` the root of their mean square, `sharpness` the mean size of the differences between neighbours
    along `axes` (-1 is the last), `crossings` the share of neighbours along these axes of which one is below zero and
    the other is not. `projection` is the sum of the elements that `modules.projection` draws for number `index`.
    """

    name: str
    tensor: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    scale: float
    take: Take = "column"
    index: int = 0
    axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(a > b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise WindowError(f"feature {self.name}: expected at least two ascending edges, got {len(self.edges)}")
        _check_index(self.name, self.index)
        if not self.scale > 0:
            raise WindowError(f"feature {self.name}: expected a scale above 0, got {self.scale}")
        _check_counts(self.name, self.counts, self.cells)

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    @property
    def cells(self) -> int:
        return self.bins + 3


class Categorical(msgspec.Struct, frozen=True, tag="categorical"):
    """A category per row: the element at `index` as text (a boolean: "False" or "True"), or (`argmax`) the category at
    the row's largest element.
    """

    name: str
    tensor: str
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    take: Literal["column", "argmax"] = "column"
    index: int = 0

    def __post_init__(self) -> None:
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise WindowError(f"feature {self.name}: expected categories that differ, got {len(self.categories)}")
        _check_index(self.name, self.index)
        _check_counts(self.name, self.counts, self.cells)

    @property
    def cells(self) -> int:
        return len(self.categories) + 2


Feature = Numeric | Categorical


class Joint(msgspec.Struct, frozen=True):
    """Bounded features of several numeric inputs together, whose means tell of changes that no single input shows.

    `inputs` are places in the profile's inputs. With z the row's values of them, (x - mean) / scale and cut at
    JOINT_CUT, the row's features are cos(frequencies z + offsets); a row with one missing does not count. A device
    sends whiten (sum of features - rows mean), whose parts have mean 0 and variance 1 per row, and are uncorrelated,
    over the `rows` training rows. float32, little-endian, row by row: frequencies (dimensions, inputs), offsets and
    mean (dimensions,), whiten (dimensions, dimensions).

    Source: Rahimi and Recht, Random Features for Large-Scale Kernel Machines (2007); the squared length of the
    difference of means estimates the maximum mean discrepancy.
    """

    inputs: tuple[int, ...]
    dimensions: int
    rows: int
    frequencies: bytes
    offsets: bytes
    mean: bytes
    whiten: bytes

    def __post_init__(self) -> None:
        size, width = self.dimensions, len(self.inputs)
        if not 1 <= size <= MAX_DIMENSIONS or not width or self.rows < 1:
            got = f"{size} dimensions, {width} inputs, {self.rows} rows"
            raise WindowError(f"joint features: expected 1 to {MAX_DIMENSIONS} dimensions, inputs and rows, got {got}")
        sizes = {"frequencies": size * width, "offsets": size, "mean": size, "whiten": size * size}
        for name, count in sizes.items():
            if len(getattr(self, name)) != 4 * count:
                got = str(len(getattr(self, name)))
                raise WindowError(f"joint features: expected {4 * count} bytes of {name}, got {got}")


class ReferenceProfile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the model was trained on: `rows` rows profiled into features of inputs and outputs."""

    rows: int
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...] = ()
    joint: Joint | None = None

    def __post_init__(self) -> None:
        if self.cells > MAX_CELLS:
            raise WindowError(f"reference profile: expected at most {MAX_CELLS} cells, got {self.cells}")
        for place in self.joint.inputs if self.joint is not None else ():
            if not 0 <= place < len(self.inputs) or not isinstance(self.inputs[place], Numeric):
                raise WindowError(f"joint features: expected places of numeric inputs, got {place}")

    @property
    def features(self) -> tuple[Feature, ...]:
        """Inputs, then outputs: the order of cells and moments in a window."""
        return self.inputs + self.outputs

    @property
    def cells(self) -> int:
        return sum(feature.cells for feature in self.inputs + self.outputs)

    @property
    def is_plain(self) -> bool:
        """Whether agents of before version 0.2 can read it: they know two ways to take a number."""
        takes = {feature.take for feature in self.features if isinstance(feature, Numeric)}
        return takes <= {"column", "max"}


class Window(msgspec.Struct, frozen=True, gc=False):
    """What one worker counted in one period. Times are seconds since the epoch by the device's clock.

    `counts` packs all cells in the reference's order; `moments` is float32, little-endian, two per numeric feature;
    `latency` packs LATENCY_BINS counts. `errors` are requests answered 5xx, `refused` those answered 4xx.

    `id` is the device's own for this window: a second one is dropped ("" from agents before 0.2). `late` are rows, of
    those counted, whose period had been closed. `joint` packs the rows and the whitened sums of `Joint` (`pack_joint`).
    `still` has a bit per numeric feature, in order, low bit first: STILL_ROWS rows or more, all of one value.
    `clock_jumps` counts how often the wall clock was set in the period, `clock_jump_s` is the largest of them.
    With `rho` above 0 the window is private (`modules.privacy`): it spent that, each of its counts carries noise of
    variance `noise` and has a sign (`pack_signed`), and what is no count of cells is left out.
    """

    module: str
    manifest_sha256: str
    reference_sha256: str
    start: float
    end: float
    rows: int
    errors: int
    refused: int
    counts: bytes
    moments: bytes
    latency: bytes
    id: str = ""
    late: int = 0
    joint: bytes = b""
    still: bytes = b""
    clock_jumps: int = 0
    clock_jump_s: float = 0.0
    rho: float = 0.0
    noise: float = 0.0


def encode_reference(profile: ReferenceProfile) -> bytes:
    """Canonical JSON, so that the same profile has the same digest."""
    return msgspec.json.encode(profile, order="sorted")


def decode_reference(data: bytes) -> ReferenceProfile:
    """Raises WindowError, with the field that does not fit."""
    if len(data) > MAX_REFERENCE_BYTES:
        raise WindowError(f"reference profile: expected at most {MAX_REFERENCE_BYTES} bytes, got {len(data)}")
    try:
        return msgspec.json.decode(data, type=ReferenceProfile)
    except MALFORMED as error:
        raise WindowError(f"reference profile: {error}") from error


def encode_window(window: Window) -> bytes:
    """Item of the window stream."""
    return msgspec.msgpack.encode(window)


_window = msgspec.msgpack.Decoder(Window)


def decode_window(data: bytes) -> Window:
    """Raises WindowError."""
    try:
        return _window.decode(data)
    except MALFORMED as error:
        raise WindowError(f"window: {error}") from error


def pack_counts(counts: Iterable[int]) -> bytes:
    """Counts as LEB128 varints, deflated: mostly small numbers in few bytes."""
    out = bytearray()
    for count in counts:
        value = int(count)
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return zlib.compress(bytes(out), 6)


def unpack_counts(data: bytes, cells: int) -> list[int]:
    """The counts again. Raises WindowError unless there are exactly `cells`, each below 2^63; never inflates more."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, cells * 9 + 1)
    except zlib.error as error:
        raise WindowError(f"window counts: {error}") from error
    counts: list[int] = []
    value = shift = 0
    for byte in raw:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            counts.append(value)
            value = shift = 0
        elif shift >= 63:
            raise WindowError("window counts: a count is larger than 2^63")
    if len(counts) != cells or shift or inflater.unconsumed_tail or inflater.unused_data:
        raise WindowError(f"window counts: expected {cells} cells, got {len(counts)}")
    return counts


def pack_signed(values: Iterable[int]) -> bytes:
    """As `pack_counts`, with the sign in the lowest bit."""
    return pack_counts(value << 1 if value >= 0 else (-value << 1) - 1 for value in values)


def unpack_signed(data: bytes, cells: int) -> list[int]:
    """Raises WindowError, as `unpack_counts`."""
    return [-((value + 1) >> 1) if value & 1 else value >> 1 for value in unpack_counts(data, cells)]


def pack_joint(rows: int, sums: Sequence[float]) -> bytes:
    """`rows` and their whitened sums (in standard deviations of one row), to the nearest JOINT_TICK."""
    return pack_signed((rows, *(round(value / JOINT_TICK) for value in sums)))


def unpack_joint(data: bytes, dimensions: int) -> tuple[int, list[int]]:
    """Rows, and the sums in JOINT_TICK. Raises WindowError, also for sums that so many rows cannot have."""
    rows, *sums = unpack_signed(data, 1 + dimensions)
    most = rows * JOINT_MOST / JOINT_TICK
    if any(abs(value) > most for value in sums):
        raise WindowError(f"window joint: expected sums of at most {most:.0f} for {rows} rows")
    return rows, sums


def _check_index(name: str, index: int) -> None:
    if index < 0:
        raise WindowError(f"feature {name}: expected an index of at least 0, got {index}")


def _check_counts(name: str, counts: Sequence[int], cells: int) -> None:
    if len(counts) != cells or any(count < 0 for count in counts):
        raise WindowError(f"feature {name}: expected {cells} counts of at least 0, got {len(counts)}")
