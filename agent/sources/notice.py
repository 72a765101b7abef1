"""News of a folder by inotify, where the kernel has it; otherwise there is none, and looking again finds what is new.

Source: inotify(7). By ctypes, because the standard library has no call for it.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

_CLOSED_AFTER_WRITING, _MOVED_HERE = 0x8, 0x80
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_EVENT = struct.Struct("iIII")
_READ_BYTES = 65_536


class Notices:
    """Of one folder. Raises OSError when the folder is not there."""

    def __init__(self, folder: Path) -> None:
        os.stat(folder)
        libc = ctypes.CDLL(None, use_errno=True)
        self._handle: int = libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        wanted = ctypes.c_uint32(_CLOSED_AFTER_WRITING | _MOVED_HERE)
        if self._handle >= 0 and libc.inotify_add_watch(self._handle, os.fsencode(folder), wanted) < 0:
            self.close()  # no watch to be had: looking again must do

    def wait(self, seconds: float) -> set[str]:
        """The names of files that were closed after writing, or moved here."""
        if self._handle < 0:
            select.select([], [], [], seconds)
            return set()
        if not select.select([self._handle], [], [], seconds)[0]:
            return set()
        try:
            data = os.read(self._handle, _READ_BYTES)
        except BlockingIOError:
            return set()
        names: set[str] = set()
        at = 0
        while at + _EVENT.size <= len(data):
            _, _, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            names.add(os.fsdecode(data[at : at + length].rstrip(b"\0")))
            at += length
        return names

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
