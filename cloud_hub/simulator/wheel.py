"""A timer wheel: tens of thousands of waits in one process, without a task or a handle of the loop for each.

A wait is a tuple in a slot; whoever asked checks, when called, whether it still holds. Nothing is cancelled. Times are
rounded up to a tick. Called by `fleet` (turns it) and `device` (waits). Source: Varghese and Lauck, Hashed and
Hierarchical Timing Wheels (1987), scheme 6.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

TICK_S = 0.05
SLOTS = 4096  # one turn takes 205 seconds; what waits longer is passed over once a turn

_Wait = tuple[int, Callable[..., None], tuple[object, ...]]


class Wheel:
    """`turn(now)` calls what is due, in the order of ticks. `now` is a monotonic clock's."""

    def __init__(self, now: float, tick_s: float = TICK_S, slots: int = SLOTS) -> None:
        self._began, self._tick_s = now, tick_s
        self._tick = 0
        self._slots: list[list[_Wait]] = [[] for _ in range(slots)]
        self.waiting = 0

    def after(self, delay_s: float, call: Callable[..., None], *arguments: object) -> None:
        """Calls once, at least one tick from now."""
        ticks = max(1, ceil(delay_s / self._tick_s))
        rounds, place = divmod(ticks - 1, len(self._slots))
        self._slots[(self._tick + 1 + place) % len(self._slots)].append((rounds, call, arguments))
        self.waiting += 1

    def turn(self, now: float) -> float:
        """Seconds until the next tick. After a long pause all ticks that were missed are made up for."""
        due = int((now - self._began) / self._tick_s)
        while self._tick < due:
            self._tick += 1
            self._call(self._tick % len(self._slots))
        return max(0.0, self._began + (self._tick + 1) * self._tick_s - now)

    def _call(self, place: int) -> None:
        waits = self._slots[place]
        if not waits:
            return
        self._slots[place] = [(rounds - 1, call, arguments) for rounds, call, arguments in waits if rounds]
        for rounds, call, arguments in waits:
            if not rounds:
                self.waiting -= 1
                call(*arguments)
