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

LONG_US = 500.0  # a round trip in which another processor can well be woken


class Near:
    """`cpu` is where the worker may come to, -1 where it shall not; `asker` the thread (its ident) that stays there."""

    def __init__(self, cpus: Set[int]) -> None:
        """`cpus` are those that the worker may use. Raises OSError and AttributeError where the system cannot."""
        self.cpu = -1
        self.asker = 0
        self._cpus = cpus
        self._which = ctypes.CDLL(None).sched_getcpu
        self._thread = 0  # as the kernel numbers it
        self._own: Set[int] = frozenset()

    def choose(self, typical_us: float) -> None:
        """Anew, for the thread that calls; none when requests take long. Raises OSError."""
        self.restore()
        self.asker = threading.get_ident()
        cpu = self._which()
        if typical_us <= LONG_US and cpu in self._cpus:
            self._own = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {cpu})
            self._thread, self.cpu = threading.get_native_id(), cpu

    def restore(self) -> None:
        """The thread may go where it could before."""
        thread, self._thread, self.cpu, self.asker = self._thread, 0, -1, 0
        if thread:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(thread, self._own)
