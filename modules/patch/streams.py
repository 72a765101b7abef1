"""One stream of a block: how its numbers and the base's elements make the target's elements."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modules.errors import PatchError
from modules.patch.form import DIFFERENCES, NO_CONTEXT, Mode
from modules.patch.planes import UNSIGNED, Numbers, join_planes, packed_size, read_section, unpack_bits
from modules.patch.reading import Base, Input


def read_stream(patch: Input, mode: Mode, width: int, length: int, old: bytes, base: Base) -> bytes:
    """The stream's `length` bytes of the target. `old`: the base's bytes it is a difference to, if it is one."""
    if mode is Mode.BYTES:
        return read_section(patch, length, base)
    before = np.frombuffer(old, UNSIGNED[width]) if mode in DIFFERENCES else None
    zeros = patch.byte()
    if zeros >= 8 * width:
        raise PatchError(f"{zeros} zero bits at the end of numbers of {8 * width}")
    numbers = _read_numbers(patch, length // width, width, zeros, before)
    return _elements(mode, numbers, zeros, before).tobytes()


def _elements(mode: Mode, numbers: Numbers, zeros: int, before: Numbers | None) -> Numbers:
    if before is None:
        return _sign_and_magnitude(numbers, zeros) if mode is Mode.NEW_FLOAT else unfold(numbers, zeros)
    if mode is Mode.XOR:
        return before ^ (numbers << _as(numbers, zeros))
    if mode is Mode.INTEGER:
        return before + unfold(numbers, zeros)
    return unordered(ordered(before) + unfold(numbers, zeros))


def _read_numbers(patch: Input, count: int, width: int, zeros: int, before: Numbers | None) -> Numbers:
    """Each number is its high part in byte planes and, below, as many plain bits as its shift says."""
    groups = _read_shifts(patch, count, width, before)
    least = min(shift for shift, _ in groups)
    low = np.zeros(count, UNSIGNED[width])
    packed = sum(packed_size(_size(places, count), shift) for shift, places in groups)
    bits = np.frombuffer(read_section(patch, packed) if packed else b"", np.uint8)
    at = 0
    for shift, places in groups:
        size = packed_size(_size(places, count), shift)
        if size:
            low[slice(None) if places is None else places] = unpack_bits(
                bits[at : at + size], _size(places, count), shift, width
            )
        at += size
    high = join_planes(patch, count, width, max(0, -(-(8 * width - zeros - least) // 8)))
    for shift, places in groups:
        where = slice(None) if places is None else places
        low[where] |= high[where] << _as(high, shift)
    return low


Places = npt.NDArray[np.intp]
Group = tuple[int, Places | None]


def _read_shifts(patch: Input, count: int, width: int, before: Numbers | None) -> list[Group]:
    """Which elements have how many plain bits: all the same, or by the magnitude of the base's element."""
    place = patch.byte()
    if place == NO_CONTEXT:
        return [(_shift(patch, width), None)]
    if before is None or place >= 8 * width:
        raise PatchError("shifts by magnitude without a base, or of bits that are not there")
    first, entries = patch.byte(), patch.byte() + 1
    shifts = np.array([_shift(patch, width) for _ in range(entries)], np.uint8)
    chosen = shifts[np.clip(magnitudes(before, place), first, first + entries - 1) - first]
    # In the order of their shifts, so that the encoder can say the same without a table of its own.
    return [(int(shift), np.flatnonzero(chosen == shift)) for shift in np.unique(chosen)]


def _shift(patch: Input, width: int) -> int:
    shift = patch.byte()
    if shift >= 8 * width:
        raise PatchError(f"a shift of {shift} for numbers of {8 * width} bits")
    return shift


def _size(places: object, count: int) -> int:
    return len(places) if isinstance(places, np.ndarray) else count


def _as(numbers: Numbers, value: int) -> Numbers:
    """A shift of the numbers' own type: NumPy widens mixed ones."""
    return np.asarray(value, numbers.dtype)


def magnitudes(numbers: Numbers, place: int) -> Places:
    """The bits from `place` to below the sign, at most 510: of a float, its exponent."""
    bits = 8 * numbers.dtype.itemsize
    plain = (numbers & _as(numbers, (1 << (bits - 1)) - 1)) >> _as(numbers, place)
    places: Places = np.minimum(plain, _as(numbers, min(510, (1 << bits) - 1))).astype(np.intp)
    return places


def ordered(numbers: Numbers) -> Numbers:
    """IEEE 754 bits as unsigned integers in the order of the values: neighbours differ by one."""
    top = _as(numbers, 1 << (8 * numbers.dtype.itemsize - 1))
    return np.where(numbers & top, ~numbers, numbers | top)


def unordered(numbers: Numbers) -> Numbers:
    """The inverse of `ordered`."""
    top = _as(numbers, 1 << (8 * numbers.dtype.itemsize - 1))
    return np.where(numbers & top, numbers ^ top, ~numbers)


def unfold(numbers: Numbers, zeros: int) -> Numbers:
    """Differences from magnitude and sign (lowest bit); "minus zero" is the one that has no magnitude of its own."""
    bits = 8 * numbers.dtype.itemsize
    one = _as(numbers, 1)
    size = (numbers >> one) << _as(numbers, zeros)
    change = np.where(numbers & one, ~size + one, size)
    return np.where(numbers == one, _as(numbers, 1 << (bits - 1)), change)


def fold(change: Numbers, zeros: int) -> Numbers:
    """The inverse of `unfold`, for differences whose lowest `zeros` bits are zero."""
    bits = 8 * change.dtype.itemsize
    one = _as(change, 1)
    negative = change >> _as(change, bits - 1)
    size = np.where(negative, ~change + one, change)
    return ((size >> _as(change, zeros)) << one) | negative


def _sign_and_magnitude(numbers: Numbers, zeros: int) -> Numbers:
    bits = 8 * numbers.dtype.itemsize
    one = _as(numbers, 1)
    return ((numbers >> one) << _as(numbers, zeros)) | ((numbers & one) << _as(numbers, bits - 1))
