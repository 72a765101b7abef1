"""Stretches of the target that no tensor explains: looked up in the base by their bytes.

Three steps, each for what the one before left: equal windows found by a rolling hash, wherever in the base they lie;
between two of them, a difference to what follows the first in the base or comes before the second, if guessing at an
element makes that small; else new bytes, or new elements.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cloud_hub.patches.encode_sections import entropy
from cloud_hub.patches.encode_streams import estimate
from cloud_hub.patches.encode_types import Buffer, Element, Piece, Tensor
from modules.patch.planes import UNSIGNED, Numbers

Hashes = npt.NDArray[np.uint64]
_LEAST_WINDOW = 32
# Windows of the base that are remembered: 16 bytes each.
_MOST_WINDOWS = 1 << 21
_STRIDE = 1 << 20
_FILTER_BITS = 24
_FACTOR = 0x9E3779B97F4A7C15
# What is guessed at has at least this many bytes, and is looked at anew after so many.
_WORTH_A_GUESS = 512
_GUESS = 1 << 18
_SAMPLE = 1 << 15
_WIDEST = 8
_GUESSES = (Element(False, 1), Element(True, 2), Element(True, 4), Element(False, 4), Element(True, 8))
# A guess must be this much smaller than plain bytes, whose repeats a compressor may still find.
_CONVINCING = 0.97


class BaseIndex:
    """The windows of the base, by their hashes; made when first asked."""

    def __init__(self, old: Buffer) -> None:
        self._old = old
        self.window = _LEAST_WINDOW
        while len(old) // self.window > _MOST_WINDOWS:
            self.window *= 2
        self._hashes: Hashes | None = None
        self._places = np.zeros(0, np.int64)
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)

    def find(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Places of `data` whose window is also in the base, with its place there; hashes may deceive."""
        if self._hashes is None:
            self._fill()
        hashes = _rolling(data, self.window)
        if not len(hashes) or self._hashes is None or not len(self._hashes):
            return
        likely = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        found = np.searchsorted(self._hashes, hashes[likely])
        found[found == len(self._hashes)] = 0
        hits = self._hashes[found] == hashes[likely]
        yield from zip(likely[hits].tolist(), self._places[found[hits]].tolist(), strict=True)

    def _fill(self) -> None:
        parts, places = [], []
        for start in range(0, len(self._old), _STRIDE):
            data = self._old[start : start + _STRIDE]
            rows = np.frombuffer(data, np.uint8, len(data) // self.window * self.window).reshape(-1, self.window)
            # One byte repeated is better compressed than looked up.
            telling = np.flatnonzero(rows.min(axis=1) != rows.max(axis=1))
            parts.append(_rolling(data, self.window)[:: self.window][telling])
            places.append(start + self.window * telling)
        every = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        self._hashes, first = np.unique(every, return_index=True)
        self._places = np.concatenate(places)[first] if places else self._places
        self._filter[self._hashes >> np.uint64(64 - _FILTER_BITS)] = True


def _rolling(data: bytes, window: int) -> Hashes:
    """The hash of the window at each place, built from windows half as long."""
    if len(data) < window:
        return np.zeros(0, np.uint64)
    # Bytes next to zero are told apart as well as others.
    hashes = (np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)) * np.uint64(_FACTOR)
    factor, length = _FACTOR, 1
    while length < window:
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        factor = factor * factor % 2**64 | 1
        length *= 2
    return hashes ^ (hashes >> np.uint64(29))


def common(one: memoryview, other: memoryview) -> int:
    """How many bytes both begin with."""
    length = min(len(one), len(other))
    at, step = 0, 256
    while at < length:
        end = min(at + step, length)
        if one[at:end] != other[at:end]:
            different = np.frombuffer(one[at:end], np.uint8) != np.frombuffer(other[at:end], np.uint8)
            return at + int(different.argmax())
        at, step = end, min(step * 4, _STRIDE)
    return length


def common_end(one: memoryview, other: memoryview) -> int:
    """How many bytes both end with."""
    length = min(len(one), len(other))
    at, step = 0, 256
    while at < length:
        end = min(at + step, length)
        mine, its = one[len(one) - end : len(one) - at], other[len(other) - end : len(other) - at]
        if mine != its:
            different = np.frombuffer(mine, np.uint8) != np.frombuffer(its, np.uint8)
            return at + int(different[::-1].argmax())
        at, step = end, min(step * 4, _STRIDE)
    return length


class Generic:
    """Explains stretches of one target by one base."""

    def __init__(self, old: Buffer, new: Buffer) -> None:
        self._old = memoryview(old)
        self._new = memoryview(new)
        self._index = BaseIndex(old)

    def explain(self, start: int, end: int, left: int, right: int) -> Iterator[Piece]:
        """The target from `start` to `end`; its neighbours in the base end at `left` and begin at `right`."""
        head = common(self._new[start:end], self._old[left:])
        tail = common_end(self._new[start + head : end], self._old[:right])
        if head:
            yield Piece(start, head, left, None)
        middle_end = end - tail
        at, last = start + head, left + head
        for copy in self._copies(at, middle_end):
            yield from self._unmatched(at, copy.start, last, copy.base or 0)
            yield copy
            at, last = copy.start + copy.length, (copy.base or 0) + copy.length
        yield from self._unmatched(at, middle_end, last, right - tail)
        if tail:
            yield Piece(middle_end, tail, right - tail, None)

    def rows(self, tensor: Tensor) -> Iterator[Piece]:
        """A tensor that is like none of the base's as a whole: what it shares with the base, and new elements."""
        at, width = tensor.start, tensor.element.width
        for copy in self._copies(tensor.start, tensor.end):
            skipped = -(copy.start - tensor.start) % width
            length = (copy.length - skipped) // width * width
            if length < _WORTH_A_GUESS:
                continue
            start = copy.start + skipped
            if start > at:
                yield Piece(at, start - at, None, tensor.element)
            yield Piece(start, length, (copy.base or 0) + skipped, None)
            at = start + length
        if tensor.end > at:
            yield Piece(at, tensor.end - at, None, tensor.element)

    def _copies(self, start: int, end: int) -> Iterator[Piece]:
        """Equal stretches, in order and apart."""
        window, free = self._index.window, start
        if end - start < window:
            return
        for at in range(start, end - window + 1, _STRIDE):
            stop = min(end, at + _STRIDE + window - 1)
            for place, base in self._index.find(bytes(self._new[at:stop])):
                here = at + place
                if here + window <= free:
                    continue
                length = common(self._new[here:end], self._old[base:])
                if length < window:
                    continue
                back = common_end(self._new[free:here], self._old[:base]) if here > free else here - free
                yield Piece(here - back, length + back, base - back, None)
                free = here + length

    def _unmatched(self, start: int, end: int, left: int, right: int) -> Iterator[Piece]:
        """Bytes between two references: a difference to what follows the first or comes before the second, or new."""
        # Elements lie at multiples of their width in most files; what was equal before need not end at one.
        odd = min(-start % _WIDEST, end - start)
        if odd:
            yield Piece(start, odd, None, None)
        shifts = {left - start, right - end}
        # The base may begin or end on the way: what lies outside of it is looked at by itself.
        firsts = {-shift + shift % _WIDEST for shift in shifts}
        lasts = {len(self._old) - shift - (len(self._old) - shift) % _WIDEST for shift in shifts}
        cuts = {cut for cut in firsts | lasts if start + odd < cut < end}
        ends = sorted({*cuts, *range(start + odd + _GUESS, end, _GUESS), end})
        for at, stop in zip([start + odd, *ends], ends, strict=False):
            if stop > at:
                yield from self._guess(at, stop - at, shifts)

    def _guess(self, start: int, length: int, shifts: set[int]) -> Iterator[Piece]:
        if length < _WORTH_A_GUESS:
            yield Piece(start, length, None, None)
            return
        size = min(length, _SAMPLE)
        places = [start + shift for shift in shifts if 0 <= start + shift <= len(self._old) - length]
        olds = {place: bytes(self._old[place : place + size]) for place in places}
        base, element = _best(bytes(self._new[start : start + size]), olds)
        whole = length // element.width * element.width if element else length
        yield Piece(start, whole, base, element)
        if length > whole:
            yield Piece(start + whole, length - whole, None, None)


def _best(new: bytes, olds: dict[int, bytes]) -> tuple[int | None, Element | None]:
    """Which place of the base to compare with, and as which element; no element for plain bytes."""
    best = entropy(np.frombuffer(new, np.uint8)) / len(new) * _CONVINCING
    chosen: tuple[int | None, Element | None] = (None, None)
    for element in _GUESSES:
        kind = UNSIGNED[element.width]
        count = len(new) // kind.itemsize
        ways: dict[int | None, Numbers | None] = {None: None} if element.floating else {}
        ways |= {place: np.frombuffer(old, kind, count) for place, old in olds.items()}
        for place, before in ways.items():
            cost = estimate(np.frombuffer(new, kind, count), before, element) / kind.itemsize
            if cost < best:
                best, chosen = cost, (place, element)
    return chosen
