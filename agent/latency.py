"""Latencies as counts: octaves of microseconds, each cut into equal parts, so that a percentile is right to an eighth.

Counts add and subtract, percentiles do not. The worker counts (`agent.endpoint.counters`), the parent compares
(`agent.update.compare`). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

PARTS = 8


def index_of(us: int, octaves: int) -> int:
    """The place of a latency in microseconds; what is longer than the last octave counts as its end."""
    us = us if us > 0 else 1
    octave = us.bit_length() - 1
    if octave >= octaves:
        octave, us = octaves - 1, (1 << octaves) - 1
    return octave * PARTS + (((us << 3) >> octave) & 7)


def percentile(counts: Sequence[int], share: float) -> float:
    """Microseconds below which `share` of them stayed; 0 when there were none."""
    wanted = share * sum(counts)
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            return _edge(index + (wanted - below) / count)
        below += count
    return 0.0


def above(counts: Sequence[int], us: float) -> int:
    """How many surely took longer than `us` microseconds."""
    return sum(count for index, count in enumerate(counts) if count and _edge(index) >= us)


def _edge(place: float) -> float:
    """Microseconds at which the part with this number begins; between two, in proportion."""
    octave, part = divmod(place, PARTS)
    return float(2**octave) * (1 + part / PARTS)
