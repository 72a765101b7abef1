"""How long to wait before trying again: twice as long after each failure, up to a ceiling. Pure.

Who waits adds its own jitter. Called by every part of the agent that tries again for ever.
"""

from __future__ import annotations

_DOUBLINGS = 30  # beyond, a float would overflow one day: what never gives up fails thousands of times


def longest_s(first_s: float, ceiling_s: float, failures: int) -> float:
    """The wait before jitter, after this many failures in a row; the first one is 1."""
    return min(ceiling_s, first_s * 2.0 ** min(max(failures - 1, 0), _DOUBLINGS))
