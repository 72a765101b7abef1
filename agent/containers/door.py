"""The way into a container: a socket in a folder that only that container sees, and descriptors passed through it.

A socket keeps the network namespace that it was made in, so a worker in a container without a network serves the
host's port. The descriptors get the same numbers inside as they have here, as if they were inherited. The agent calls
`Door`, `agent.containers.inside` calls `enter`.
Source: unix(7) SCM_RIGHTS; network_namespaces(7).
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import shutil
import socket
import struct
from pathlib import Path

from agent.errors import WorkerError

SOCKET = "door"
INSIDE = "/mooring/control"  # where the folder is in the container
MAX_HANDLES = 64
_HEAD = struct.Struct(">I")
_FREE_FROM = 600  # numbers that are out of the way while the others get theirs


class Door:
    """A listening socket in a fresh folder. `folder` is to be mounted into the container, `close` removes it."""

    def __init__(self, folder: Path, uid: int) -> None:
        """`uid` is the user inside, the only one who may knock. Raises OSError."""
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o755)
        folder.chmod(0o755)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:  # by its handle: a path of more than 107 bytes cannot be bound
            self._socket.bind(f"/proc/self/fd/{handle}/{SOCKET}")
            path = folder / SOCKET
            path.chmod(0o600)
            if uid != os.geteuid():
                _give(path, uid)
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(handle)

    async def opened(self, handles: tuple[int, ...], output: int) -> socket.socket:
        """The first who knocks gets `handles`, and `output` for what it prints; the channel to it. Raises OSError."""
        channel, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        try:
            numbers = (output, *handles)
            body = struct.pack(f">{len(numbers)}I", *numbers)
            socket.send_fds(channel, [_HEAD.pack(len(numbers)) + body], list(numbers))
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        """Twice does no harm."""
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _give(path: Path, uid: int) -> None:
    """Where we may not give it away, it is open to all who see it; and its folder's parent is closed."""
    try:
        os.chown(path, uid, uid)
    except PermissionError:
        path.chmod(0o666)


def enter(path: str) -> socket.socket:
    """Connects, takes over the descriptors under their numbers, and prints where it is told. Raises OSError."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.connect(path)
    channel = _moved(channel)
    head, handles, _, _ = socket.recv_fds(channel, _HEAD.size, MAX_HANDLES + 1)
    (count,) = _HEAD.unpack(head)
    numbers = array.array("I", channel.recv(4 * count, socket.MSG_WAITALL))
    numbers.byteswap()
    if len(handles) != count or len(numbers) != count:
        raise WorkerError(f"door: expected {count} descriptors, got {len(handles)}", "spawn-failed")
    away = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, _FREE_FROM) for handle in handles]
    for handle in handles:
        os.close(handle)
    for handle, number in zip(away[1:], numbers[1:], strict=True):
        os.dup2(handle, number)
    for standard in (1, 2):
        os.dup2(away[0], standard)
    for handle in away:
        os.close(handle)
    return channel


def _moved(channel: socket.socket) -> socket.socket:
    """To a number that nobody else is given."""
    handle = fcntl.fcntl(channel.fileno(), fcntl.F_DUPFD_CLOEXEC, _FREE_FROM)
    channel.close()
    return socket.socket(fileno=handle)
