"""Random projections of wide rows: which elements a projection sums, and with which sign.

Derived from the projection's number and the row's width alone, so that hub and device draw the same with no matrix
sent. Few elements are enough: Li, Hastie and Church, Very Sparse Random Projections (2006). Pure; called by
`modules.taking`.
"""

from __future__ import annotations

import hashlib
import struct

TERMS = 256
_TERM_BYTES = 8
_SIGN = 1 << 63


def projection(index: int, width: int) -> tuple[list[int], list[float]]:
    """Places in a flat row of `width` elements, of which one may stand twice, and the weight of each.

    Term i is the i-th 8 bytes, little-endian, of SHAKE-256("mooring projection <index> <width>"): the highest bit set
    is minus, the rest modulo `width` the place. The weights are 1/sqrt(TERMS) in size.
    """
    said = f"mooring projection {index} {width}".encode()
    drawn = struct.unpack(f"<{TERMS}Q", hashlib.shake_256(said).digest(TERMS * _TERM_BYTES))
    weight = TERMS**-0.5
    return [(term & ~_SIGN) % width for term in drawn], [-weight if term & _SIGN else weight for term in drawn]
