"""Keeps an application's thread on its processor while it waits, so that the worker's thread can come to it.

The two take turns, so one processor is enough; the kernel, left alone, wakes another for each turn, which takes
longer than a small model's run (measured: a round trip of 10 us on one, 50 us between two of a virtual machine). The
thread's own affinity is put back before the answer is returned. Used by the plain client.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

_MASK_BYTES = 128  # 1024 processors, as glibc's cpu_set_t
LONG_US = 500.0
_STEP = 1.05
_Mask = ctypes.c_ubyte * _MASK_BYTES


class Near:
    """`enter` before a request, `leave` after it, on the same thread."""

    def __init__(self, cpus: Iterable[int]) -> None:
        """`cpus` are those that the worker may use. Raises OSError and AttributeError where the system cannot."""
        libc = ctypes.PyDLL(None)  # these calls are shorter than giving up the interpreter's lock for them
        self._cpu = libc.sched_getcpu
        self._get, self._set = libc.sched_getaffinity, libc.sched_setaffinity
        self._masks = {cpu: _mask(cpu) for cpu in cpus if cpu < 8 * _MASK_BYTES}
        self._own = _Mask()
        self._narrowed = False
        self._typical_us = 0.0

    def enter(self) -> int:
        """The processor to which the worker may come; -1 for a request that takes so long that it does not matter."""
        if self._typical_us > LONG_US:
            return -1
        cpu: int = self._cpu()
        mask = self._masks.get(cpu)
        if mask is None or self._get(0, _MASK_BYTES, self._own) <= 0:
            return -1
        self._narrowed = self._set(0, _MASK_BYTES, mask) == 0
        return cpu if self._narrowed else -1

    def leave(self, took_us: float) -> None:
        if self._narrowed:
            self._set(0, _MASK_BYTES, self._own)
            self._narrowed = False
        if not self._typical_us:
            self._typical_us = took_us
        else:
            self._typical_us *= _STEP if took_us > self._typical_us else 1 / _STEP


def _mask(cpu: int) -> ctypes.Array[ctypes.c_ubyte]:
    mask = _Mask()
    mask[cpu // 8] = 1 << (cpu % 8)
    return mask
