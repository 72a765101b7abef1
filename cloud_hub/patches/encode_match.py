"""Which stretch of the base each stretch of the target is like: tensors by name, shape and place, then bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from cloud_hub.patches.encode_generic import Generic
from cloud_hub.patches.encode_streams import estimate
from cloud_hub.patches.encode_types import Buffer, Element, Piece, Tensor
from modules.patch.planes import UNSIGNED, Numbers

# Equal stretches of a changed tensor of fewer elements stay in the difference: a reference costs a few bytes, and so
# does a zero's share of the plain bits; where most elements are equal, zeros cost next to nothing.
_WORTH_A_REFERENCE = 64
_WORTH_A_REFERENCE_IF_SPARSE = 8192
# Bytes of a tensor that are compared at once, a multiple of every width; NumPy takes some times as much memory.
_AT_A_TIME = 8 << 20
_SAMPLE = 1 << 14


def match_tensors(old: Buffer, new: Buffer, before: list[Tensor], after: list[Tensor]) -> list[Tensor | None]:
    """For each tensor of the target the one of the base to compare it with, of the same element and length."""
    free = {id(tensor): tensor for tensor in before}
    chosen: list[Tensor | None] = [None] * len(after)

    def take(place: int, candidates: list[Tensor]) -> None:
        found = next((one for one in candidates if id(one) in free and _alike(one, after[place])), None)
        if found is not None and chosen[place] is None:
            chosen[place] = free.pop(id(found))

    names = defaultdict(list)
    for tensor in before:
        names[tensor.name].append(tensor)
    for place, tensor in enumerate(after):
        take(place, names[tensor.name])
    open_places = [place for place, found in enumerate(chosen) if found is None]
    if open_places and free:
        contents = defaultdict(list)
        for tensor in free.values():
            contents[_digest(old, tensor)].append(tensor)
        for place in open_places:
            take(place, contents.get(_digest(new, after[place]), []))
        for place in open_places:
            take(place, list(free.values()))
    return chosen


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.element == other.element and one.end - one.start == other.end - other.start


def _digest(data: Buffer, tensor: Tensor) -> bytes:
    return hashlib.blake2b(memoryview(data)[tensor.start : tensor.end], digest_size=16).digest()


def pieces(old: Buffer, new: Buffer, before: list[Tensor], after: list[Tensor]) -> Iterator[Piece]:
    """The whole target in order."""
    generic = Generic(old, new)
    named = {tensor.name: tensor for tensor in before}
    at = cursor = 0
    for tensor, match in zip(after, match_tensors(old, new, before, after), strict=True):
        yield from generic.explain(at, tensor.start, cursor, cursor if match is None else match.start)
        if match is None:
            yield from _resized(old, new, tensor, named.get(tensor.name), generic)
        else:
            yield from _difference(old, new, tensor, match)
            cursor = match.end
        at = tensor.end
    yield from generic.explain(at, len(new), cursor, len(old))


def _resized(old: Buffer, new: Buffer, tensor: Tensor, namesake: Tensor | None, generic: Generic) -> Iterator[Piece]:
    """A tensor that none of the base's is like. More classes, say: the rows it had are often still the first ones."""
    common = 0
    if namesake is not None and namesake.element == tensor.element and namesake.shape[1:] == tensor.shape[1:]:
        common = min(tensor.end - tensor.start, namesake.end - namesake.start)
    if namesake is not None and common:
        mine, its = tensor._replace(end=tensor.start + common), namesake._replace(end=namesake.start + common)
        after, before = _elements(new, mine), _elements(old, its)
        if not _unrelated(after, before, tensor.element):
            yield from _difference(old, new, mine, its)
            tensor = tensor._replace(start=mine.end)
    if tensor.end > tensor.start:
        yield from generic.rows(tensor)


def _elements(data: Buffer, tensor: Tensor) -> Numbers:
    kind = UNSIGNED[tensor.element.width]
    return np.frombuffer(data, kind, (tensor.end - tensor.start) // kind.itemsize, tensor.start)


def _difference(old: Buffer, new: Buffer, tensor: Tensor, match: Tensor) -> Iterator[Piece]:
    """A changed tensor, some megabytes at a time."""
    if memoryview(new)[tensor.start : tensor.end] == memoryview(old)[match.start : match.end]:
        yield Piece(tensor.start, tensor.end - tensor.start, match.start, None)
        return
    for at in range(0, tensor.end - tensor.start, _AT_A_TIME):
        size = min(_AT_A_TIME, tensor.end - tensor.start - at)
        mine = tensor._replace(start=tensor.start + at, end=tensor.start + at + size)
        its = match._replace(start=match.start + at, end=match.start + at + size)
        yield from _changed(old, new, mine, its)


def _changed(old: Buffer, new: Buffer, tensor: Tensor, match: Tensor) -> Iterator[Piece]:
    """Differences, and long equal stretches by reference; new elements if they have nothing to do with the base's."""
    kind = UNSIGNED[tensor.element.width]
    after, before = _elements(new, tensor), _elements(old, match)
    places = np.flatnonzero(after != before)
    if 2 * len(places) > len(after) and _unrelated(after, before, tensor.element):
        yield Piece(tensor.start, tensor.end - tensor.start, None, tensor.element)
        return
    apart = _WORTH_A_REFERENCE_IF_SPARSE if 2 * len(places) < len(after) else _WORTH_A_REFERENCE
    at = 0
    for start, end in _stretches(places, apart):
        yield from _part(tensor, match, at, start, kind.itemsize, equal=True)
        yield from _part(tensor, match, start, end, kind.itemsize, equal=False)
        at = end
    yield from _part(tensor, match, at, len(after), kind.itemsize, equal=True)


def _unrelated(after: Numbers, before: Numbers, element: Element) -> bool:
    some = slice(None, None, -(-after.size // _SAMPLE))
    return estimate(after[some], None, element) < estimate(after[some], before[some], element)


def _stretches(places: np.ndarray[tuple[int], np.dtype[np.intp]], apart: int) -> Iterator[tuple[int, int]]:
    """From the first to behind the last of the places that lie near each other."""
    if not len(places):
        return
    breaks = np.flatnonzero(np.diff(places) > apart)
    starts = places[np.concatenate(([0], breaks + 1))]
    ends = places[np.concatenate((breaks, [len(places) - 1]))] + 1
    yield from zip(starts.tolist(), ends.tolist(), strict=True)


def _part(tensor: Tensor, match: Tensor, start: int, end: int, width: int, *, equal: bool) -> Iterator[Piece]:
    if end > start:
        place = tensor.start + start * width
        yield Piece(place, (end - start) * width, match.start + start * width, None if equal else tensor.element)
