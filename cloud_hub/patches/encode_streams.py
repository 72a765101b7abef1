"""One stream of a block: chooses the cheapest of XOR, integer and ordered float difference, and its shifts."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from cloud_hub.patches.encode_sections import entropy, plane_section
from cloud_hub.patches.encode_types import Element
from modules.patch.form import NO_CONTEXT, Codec, Mode
from modules.patch.planes import UNSIGNED, Numbers
from modules.patch.streams import fold, ordered

# Bits above the median that stay in the planes: the plain ones below are as good as random.
_KEPT_BITS = 5
_SAMPLE = 1 << 14


def encode_stream(new: bytes, old: bytes | None, element: Element, codecs: Collection[Codec]) -> tuple[int, bytes]:
    """The form byte and what follows it."""
    kind = UNSIGNED[element.width]
    before = None if old is None else np.frombuffer(old, kind)
    mode, change = _change(np.frombuffer(new, kind), before, element)
    form = mode | (element.width.bit_length() - 1) << 4
    return form, _numbers(change, mode, codecs)


def _change(after: Numbers, before: Numbers | None, element: Element) -> tuple[Mode, Numbers]:
    """Unfolded: a difference, or (XOR, new floats) the bits themselves."""
    if before is None:
        return (Mode.NEW_FLOAT, after) if element.floating else (Mode.NEW_INTEGER, after)
    number = (Mode.FLOAT, ordered(after) - ordered(before)) if element.floating else (Mode.INTEGER, after - before)
    bits = (Mode.XOR, after ^ before)
    return min((number, bits), key=lambda way: _cost(*way))


def _cost(mode: Mode, change: Numbers) -> float:
    """Bytes, by a sample."""
    step = max(1, change.size // _SAMPLE)
    numbers = _folded(mode, change[::step], 0)
    shift = _shift(numbers)
    high = (numbers >> numbers.dtype.type(shift)).view(np.uint8).reshape(-1, change.dtype.itemsize)
    return sum(entropy(high[:, place]) for place in range(high.shape[1])) + numbers.size * shift / 8


def _folded(mode: Mode, change: Numbers, zeros: int) -> Numbers:
    if mode is Mode.XOR:
        return change >> change.dtype.type(zeros)
    if mode is Mode.NEW_FLOAT:
        one, bits = change.dtype.type(1), 8 * change.dtype.itemsize
        sign = change >> change.dtype.type(bits - 1)
        size = change & change.dtype.type((1 << (bits - 1)) - 1)
        return ((size >> change.dtype.type(zeros)) << one) | sign
    return fold(change, zeros)


def _trailing_zeros(mode: Mode, change: Numbers) -> int:
    """Low bits that no number uses."""
    used = int(np.bitwise_or.reduce(change))
    bits = 8 * change.dtype.itemsize
    if mode is Mode.NEW_FLOAT:
        used &= (1 << (bits - 1)) - 1
    return (used & -used).bit_length() - 1 if used else 0


def _shift(numbers: Numbers) -> int:
    median = int(np.partition(numbers, numbers.size // 2)[numbers.size // 2])
    return max(0, median.bit_length() - _KEPT_BITS)


def _numbers(change: Numbers, mode: Mode, codecs: Collection[Codec]) -> bytes:
    zeros = _trailing_zeros(mode, change)
    numbers = _folded(mode, change, zeros)
    width = change.dtype.itemsize
    shift = 0 if mode in (Mode.NEW_FLOAT, Mode.XOR) else _shift(numbers)
    made = [bytes([zeros, NO_CONTEXT, shift])]
    if shift:
        made.append(plane_section(_packed(numbers, shift), codecs))
    planes = (numbers >> numbers.dtype.type(shift)).view(np.uint8).reshape(-1, width)
    count = max(0, -(-(8 * width - zeros - shift) // 8))
    made += [plane_section(np.ascontiguousarray(planes[:, place]), codecs) for place in range(count)]
    return b"".join(made)


def _packed(numbers: Numbers, bits: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The lowest `bits` bits of each number, one after the other."""
    columns = numbers.view(np.uint8).reshape(numbers.size, -1)
    apart = np.unpackbits(columns[:, : (bits + 7) // 8], axis=1, bitorder="little")[:, :bits]
    return np.packbits(apart.reshape(-1), bitorder="little")
