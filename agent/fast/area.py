"""A client's memory in the worker: taken over its socket, checked, mapped. Called by `seat`.

A memory file that shrinks under a mapping kills whoever touches what is gone (SIGBUS), so the kernel must have been
told that it never will: F_SEAL_SHRINK, which cannot be taken back. Huge pages can kill in the same way when there
are none left, so they are refused too.
Source: memfd_create(2), fcntl(2) "File Sealing", mmap(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import socket

from agent.endpoint.exchange import Refused
from agent.fast.wire import MAX_MESSAGE, WireError, read_area

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def receive_area(sock: socket.socket, most: int) -> mmap.mmap:
    """Waits for the client's area. Raises Refused, WireError, OSError."""
    message, handles, flags, _ = socket.recv_fds(sock, MAX_MESSAGE, 1)
    try:
        if not message:
            raise ConnectionResetError("the client left")
        size = read_area(message)
        if len(handles) != 1 or flags & socket.MSG_CTRUNC:
            raise WireError(f"expected one descriptor with an area, got {len(handles)}")
        return _mapped(handles[0], size, most)
    finally:
        for handle in handles:
            os.close(handle)


def _mapped(handle: int, size: int, most: int) -> mmap.mmap:
    if not 0 < size <= most:
        raise Refused(413, f"area: expected 1 to {most} bytes, got {size}")
    seals = 0
    with contextlib.suppress(OSError):  # what is no memory file has none
        seals = fcntl.fcntl(handle, fcntl.F_GET_SEALS)
    if seals & _SEALS != _SEALS:
        raise Refused(400, "area: expected a memory file sealed against shrinking and growing")
    if os.fstat(handle).st_size != size:
        raise Refused(400, f"area: expected a file of {size} bytes, got {os.fstat(handle).st_size}")
    if os.fstatvfs(handle).f_bsize != resource.getpagesize():
        raise Refused(400, "area: expected pages of the usual size, got huge ones")
    try:
        return mmap.mmap(handle, size)
    except OSError as error:  # sealed against writing as well, or no room at the module's limit
        raise Refused(507, f"area: cannot map {size} bytes: {error.strerror}") from error
