"""Executions counted as the hub counts them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from cloud_hub.rollouts.records import StateCounts
from cloud_hub.rollouts.states import NOT_ELIGIBLE, Execution


def counted(parts: Sequence[Execution]) -> StateCounts:
    """By group and state."""
    counts: StateCounts = defaultdict(Counter)
    for part in parts:
        if part.group_index != NOT_ELIGIBLE:
            counts[part.group_index][part.state] += 1
    return counts
