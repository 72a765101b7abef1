"""The words that the files of the encoder share."""

from __future__ import annotations

import mmap
from typing import NamedTuple

Buffer = bytes | mmap.mmap


class Element(NamedTuple):
    """What a tensor is made of: floating point or integer, of so many bytes."""

    floating: bool
    width: int


class Tensor(NamedTuple):
    """One tensor and the bytes of the file that hold it."""

    name: str
    element: Element
    shape: tuple[int, ...]
    start: int
    end: int


class Piece(NamedTuple):
    """A stretch of the target: like the base from `base` on (no element), a difference to it, or new."""

    start: int
    length: int
    base: int | None
    element: Element | None
