"""How fast a rollout that is watched comes along, and how long the rest will take at that pace.

From what is seen while watching: over the last minutes, so that it follows a rate that grows and windows that close.
Used by `cli.rollout_watch`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from cloud_hub.rollouts.states import DONE, ExecutionState
from cloud_hub.rollouts.status import RolloutStatus

SPAN_S: Final = 120.0
LEAST_S: Final = 5.0  # less than that says nothing of the pace


class Progress(msgspec.Struct, frozen=True):
    """Devices that are done of all that take part, how many more each minute, and the seconds that the rest takes.

    `per_minute` and `left_s` are null while that cannot be said.
    """

    done: int
    of: int
    per_minute: float | None = None
    left_s: float | None = None


class Pace:
    """Takes a look at a rollout now and then; times are of a clock that never jumps."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._of = 0

    def note(self, status: RolloutStatus, now: float) -> None:
        states = [(state, count) for group in status.groups for state, count in group.states.items()]
        self._of = sum(count for _, count in states)
        done = sum(count for state, count in states if ExecutionState(state) in DONE)
        if self._looks and done < self._looks[-1][1]:
            self._looks.clear()  # it was begun again, or goes back
        self._looks.append((now, done))
        while now - self._looks[0][0] > SPAN_S:
            self._looks.popleft()

    def progress(self) -> Progress | None:
        """None before the first look."""
        if not self._looks:
            return None
        (since, before), (now, done) = self._looks[0], self._looks[-1]
        if now - since < LEAST_S or done == before:
            return Progress(done, self._of)
        speed = (done - before) / (now - since)
        return Progress(done, self._of, 60 * speed, (self._of - done) / speed)
