"""One stream of a block: chooses the cheapest of XOR, integer and ordered float difference, and its shifts."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from cloud_hub.patches.encode_sections import Bytes, entropy, plane_section
from cloud_hub.patches.encode_types import Element
from modules.patch.form import NO_CONTEXT, Codec, Mode
from modules.patch.planes import UNSIGNED, Numbers
from modules.patch.streams import Places, fold, magnitudes, ordered

# Bits above the median that stay in the planes: the plain ones below are as good as random.
_KEPT_BITS = 5
_SAMPLE = 1 << 14
# Where the exponent begins in IEEE 754's formats; in bfloat16 these are its upper bits, which is as well.
_EXPONENT = {2: 10, 4: 23, 8: 52}
# Fewer elements of one magnitude than this say nothing about their shift.
_ENOUGH = 64
_MAX_SHIFTS = 256


def encode_stream(new: bytes, old: bytes | None, element: Element, codecs: Collection[Codec]) -> tuple[int, bytes]:
    """The form byte and what follows it. `old`: the base's elements, if the stream is a difference to them."""
    after = np.frombuffer(new, UNSIGNED[element.width])
    before = None if old is None else np.frombuffer(old, UNSIGNED[element.width])
    mode, change = _change(after, before, element)
    zeros = _trailing_zeros(mode, change)
    numbers = _folded(mode, change, zeros)
    shift = 0 if mode in (Mode.NEW_FLOAT, Mode.XOR) else _shift(numbers)
    head, shifts = bytes([NO_CONTEXT, shift]), np.full(1, shift, np.uint8)
    if mode is Mode.FLOAT and before is not None and element.width in _EXPONENT:
        one, each = (head, shifts), _by_magnitude(numbers, before, _EXPONENT[element.width])
        head, shifts = min(one, each, key=lambda way: len(way[0]) + _size(numbers, way[1]))
    form = mode | (element.width.bit_length() - 1) << 4
    return form, bytes([zeros]) + head + _sections(numbers, shifts, zeros, codecs)


def estimate(after: Numbers, before: Numbers | None, element: Element) -> float:
    """About how many bytes the stream would take for each element."""
    return _cost(*_change(after, before, element))


def _change(after: Numbers, before: Numbers | None, element: Element) -> tuple[Mode, Numbers]:
    """Unfolded: a difference, or (XOR, new floats) the bits themselves."""
    if before is None:
        return (Mode.NEW_FLOAT, after) if element.floating else (Mode.NEW_INTEGER, after)
    number = (Mode.FLOAT, ordered(after) - ordered(before)) if element.floating else (Mode.INTEGER, after - before)
    bits = (Mode.XOR, after ^ before)
    return min((number, bits), key=lambda way: _cost(*way))


def _cost(mode: Mode, change: Numbers) -> float:
    """Bytes for each element, by a sample."""
    numbers = _folded(mode, change[:: -(-change.size // _SAMPLE)], 0)
    shift = 0 if mode in (Mode.NEW_FLOAT, Mode.XOR) else _shift(numbers)
    return _size(numbers, np.full(1, shift, np.uint8)) / numbers.size


def _size(numbers: Numbers, shifts: Bytes) -> float:
    """Bytes that a perfect coder of planes needs, and the plain bits."""
    each = np.broadcast_to(shifts, numbers.shape)
    high = _columns(numbers >> each.astype(numbers.dtype))
    planes = sum(entropy(np.ascontiguousarray(high[:, place])) for place in range(high.shape[1]))
    return planes + float(each.sum(dtype=np.int64)) / 8


def _folded(mode: Mode, change: Numbers, zeros: int) -> Numbers:
    kind = change.dtype.type
    if mode is Mode.XOR:
        return change >> kind(zeros)
    if mode is Mode.NEW_FLOAT:
        bits = 8 * change.dtype.itemsize
        size = change & kind((1 << (bits - 1)) - 1)
        return ((size >> kind(zeros)) << kind(1)) | (change >> kind(bits - 1))
    return fold(change, zeros)


def _trailing_zeros(mode: Mode, change: Numbers) -> int:
    """Low bits that no number uses: floats that were once of a shorter type have many."""
    used = int(np.bitwise_or.reduce(change))
    if mode is Mode.NEW_FLOAT:
        used &= (1 << (8 * change.dtype.itemsize - 1)) - 1
    return (used & -used).bit_length() - 1 if used else 0


def _shift(numbers: Numbers) -> int:
    middle = numbers.size // 2
    return max(0, int(np.partition(numbers, middle)[middle]).bit_length() - _KEPT_BITS)


def _by_magnitude(numbers: Numbers, before: Numbers, place: int) -> tuple[bytes, Bytes]:
    """A shift for each exponent of the base: what training adds is as large for small weights as for large ones."""
    found = magnitudes(before, place)
    counts = np.bincount(found)
    known = np.flatnonzero(counts >= _ENOUGH)[-_MAX_SHIFTS:]
    known = known[(known < _MAX_SHIFTS) & (known > known[-1:] - _MAX_SHIFTS)]
    shifts = _shifts_of(numbers, found, counts, known)
    if not shifts:
        return bytes([NO_CONTEXT, 0]), np.zeros(1, np.uint8)
    first, last = int(known[0]), int(known[-1])
    # A magnitude in between that says nothing is like the next smaller one.
    filled = [shifts[np.searchsorted(known, value, "right") - 1] for value in range(first, last + 1)]
    table = np.array(filled, np.uint8)
    return bytes([place, first, last - first]) + table.tobytes(), table[np.clip(found, first, last) - first]


def _shifts_of(numbers: Numbers, found: Places, counts: Places, known: Places) -> list[int]:
    order = numbers[np.argsort(found, kind="stable")]
    ends = np.cumsum(counts)
    return [_shift(order[ends[value] - counts[value] : ends[value]]) for value in known.tolist()]


def _sections(numbers: Numbers, shifts: Bytes, zeros: int, codecs: Collection[Codec]) -> bytes:
    """The plain low bits, group by group, and the planes of what is above them."""
    each = np.broadcast_to(shifts, numbers.shape)
    packed = [_packed(numbers[each == shift], shift) for shift in np.unique(shifts).tolist() if shift]
    made = [plane_section(np.concatenate(packed), codecs)] if packed else []
    planes = _columns(numbers >> each.astype(numbers.dtype))
    count = max(0, -(-(8 * planes.shape[1] - zeros - int(shifts.min())) // 8))
    made += [plane_section(np.ascontiguousarray(planes[:, place]), codecs) for place in range(count)]
    return b"".join(made)


def _columns(numbers: Numbers) -> Bytes:
    return numbers.view(np.uint8).reshape(numbers.size, -1)


def _packed(numbers: Numbers, bits: int) -> Bytes:
    """The lowest `bits` bits of each number, one after the other."""
    apart = np.unpackbits(_columns(numbers)[:, : (bits + 7) // 8], axis=1, bitorder="little")[:, :bits]
    return np.packbits(apart.reshape(-1), bitorder="little")
