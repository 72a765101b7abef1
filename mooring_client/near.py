"""Keeps an application's thread on one processor, so that the worker's thread can come to it.

The two take turns, so one processor is enough; the kernel, left alone, wakes another for each turn, which takes
longer than a small model's run. The processor is chosen anew now and then, where the kernel has put the thread. Used by
the plain client, where it was asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Set

AGAIN_S = 0.1
LONG_US = 500.0  # a round trip in which another processor can well be woken
_STEP = 1.05


class Near:
    """`enter` before a request, `leave` after it, on the same thread. `leave` never raises."""

    def __init__(self, cpus: Set[int]) -> None:
        """`cpus` are those that the worker may use. Raises OSError and AttributeError where the system cannot."""
        self._cpus = cpus
        self._which = ctypes.PyDLL(None).sched_getcpu  # shorter than giving up the interpreter's lock for it
        self._asker = 0  # the thread as Python numbers it, and as the kernel does
        self._thread = 0
        self._own: Set[int] = frozenset()
        self._cpu = -1
        self._until = 0.0
        self._typical_us = 0.0

    def enter(self, now: float) -> int:
        """The processor to which the worker may come, -1 for none. `now` is as of time.perf_counter."""
        if now > self._until or self._asker != threading.get_ident():
            self._choose(now)
        return self._cpu

    def leave(self, took_us: float) -> None:
        """What the request took decides whether the next is worth it."""
        if not self._typical_us:
            self._typical_us = took_us
        else:
            self._typical_us *= _STEP if took_us > self._typical_us else 1 / _STEP

    def restore(self) -> None:
        """The thread may go where it could before."""
        thread, self._thread, self._cpu = self._thread, 0, -1
        if thread:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(thread, self._own)

    def _choose(self, now: float) -> None:
        self.restore()
        self._until, self._asker = now + AGAIN_S, threading.get_ident()
        if self._typical_us > LONG_US:
            return
        cpu = self._which()
        if cpu in self._cpus:
            self._own = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {cpu})
            self._thread, self._cpu = threading.get_native_id(), cpu
