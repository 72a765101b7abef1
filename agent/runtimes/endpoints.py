"""Where modules answer: listening sockets that outlive their workers.

The agent owns one Unix socket, one for shared memory and one loopback TCP socket per module name and lends them to
every worker of that name, so a new worker takes over without a refused connection. The TCP port is kept in the store:
it stays the same over restarts and versions. Called by `process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError
from agent.runtimes.access import Access
from agent.store import AgentStore

BACKLOG = 1024  # what waits while one worker hands over to the next; the kernel may have a lower limit
MAX_SOCKET_PATH = 107  # sun_path of Linux, without its end
# How long a port may still be held by a worker that dies with the agent before this one: the kernel frees its memory
# first, which takes a second for some gigabytes.
PORT_WAIT_S = 10.0

_logger = logging.getLogger(__name__)


class EndpointError(AgentError):
    """A module's listening socket cannot be made."""

    key = "endpoint"


@dataclass(frozen=True)
class Endpoint:
    """Where one module answers. Bound from the start, refusing connections until `listen`."""

    name: str
    path: Path
    host: str
    port: int
    sockets: tuple[socket.socket, ...]
    fast: socket.socket | None = None  # for clients over shared memory

    @property
    def address(self) -> str:
        """For people and reports: the TCP address where there is one, else the Unix socket."""
        return f"http://{self.host}:{self.port}" if self.port else f"unix:{self.path}"

    @property
    def handles(self) -> tuple[int, ...]:
        return tuple(one.fileno() for one in self.sockets)

    @property
    def fast_handle(self) -> int:
        return -1 if self.fast is None else self.fast.fileno()

    @property
    def inherited(self) -> tuple[int, ...]:
        """All that a worker must have."""
        return self.handles if self.fast is None else (*self.handles, self.fast_handle)

    def listen(self) -> None:
        """Idempotent. From now on connections wait in the backlog until a worker takes them."""
        for one in (*self.sockets, *([self.fast] if self.fast else [])):
            one.listen(BACKLOG)

    def close(self) -> None:
        for one in (*self.sockets, *([self.fast] if self.fast else [])):
            one.close()
        self.path.unlink(missing_ok=True)
        _fast_path(self.path).unlink(missing_ok=True)


class Endpoints:
    """By module name, in `folder`; on TCP at `host`, or not where that is empty."""

    def __init__(self, folder: Path, host: str, store: AgentStore, access: Access) -> None:
        self._folder = folder
        self._host = host
        self._store = store
        self._access = access
        self._open: dict[str, Endpoint] = {}
        self._opening = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._open)

    async def get(self, name: str) -> Endpoint:
        """Made on first use. Raises EndpointError."""
        async with self._opening:
            if name not in self._open:
                self._open[name] = await self._make(name)
            return self._open[name]

    def address(self, name: str) -> str:
        """Empty where there is none."""
        endpoint = self._open.get(name)
        return endpoint.address if endpoint is not None else ""

    def forget(self, name: str) -> None:
        """Closes it: from now on connections are refused."""
        endpoint = self._open.pop(name, None)
        if endpoint is not None:
            endpoint.close()

    def sweep(self) -> None:
        """Removes the sockets that an agent has left which was killed: nobody answers behind them any more."""
        known = {path for e in self._open.values() for path in (e.path, _fast_path(e.path))}
        for path in self._folder.glob("*.sock"):
            if path not in known:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        for name in list(self._open):
            self.forget(name)

    async def _make(self, name: str) -> Endpoint:
        path = self._folder / f"{name}.sock"
        try:
            unix = _bind_unix(path)
            self._access.share(path)
        except OSError as error:
            raise EndpointError(f"endpoint {path}: {error}") from error
        if not self._host:
            return Endpoint(name, path, "", 0, (unix,), _bind_fast(path))
        try:
            tcp = await self._bind_tcp(name)
        except OSError as error:
            unix.close()
            raise EndpointError(f"endpoint of {name} on {self._host}: {error}") from error
        return Endpoint(name, path, self._host, tcp.getsockname()[1], (unix, tcp), _bind_fast(path))

    async def _bind_tcp(self, name: str) -> socket.socket:
        """The port of last time where it is free, else a new one."""
        known = (await self._store.ports()).get(name, 0)
        if known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PORT_WAIT_S):
                    return await _bind_when_free(self._host, known)
            _logger.warning("port taken by somebody else, choosing another", extra={"unit": name, "port": known})
        fresh = _bind(self._host, 0)
        await self._store.put_port(name, fresh.getsockname()[1])
        return fresh


def _fast_path(path: Path) -> Path:
    return path.with_suffix(".fast.sock")  # names of modules have no dot


def _bind_fast(path: Path) -> socket.socket | None:
    """None where there can be no such socket (a path that is too long): clients then use HTTP."""
    try:
        return _bind_unix(_fast_path(path), socket.SOCK_SEQPACKET)
    except OSError as error:
        _logger.warning("no shared memory for this module's clients", extra={"unit": path.stem, "why": str(error)})
        return None


def _bind_unix(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise OSError(f"expected a path of at most {MAX_SOCKET_PATH} bytes, got {len(os.fsencode(path))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
        path.unlink()  # of an agent that was killed
    unix = socket.socket(socket.AF_UNIX, kind)
    try:
        unix.bind(str(path))
        path.chmod(0o660)  # before listen: nobody can connect sooner
        unix.setblocking(False)
    except BaseException:
        unix.close()
        raise
    return unix


async def _bind_when_free(host: str, port: int) -> socket.socket:
    while True:
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        await asyncio.sleep(0.05)


def _bind(host: str, port: int) -> socket.socket:
    tcp = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
        tcp.setblocking(False)
    except BaseException:
        tcp.close()
        raise
    return tcp
