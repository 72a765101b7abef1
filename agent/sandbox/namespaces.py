"""Namespaces for a forked worker to enter: bubblewrap makes them, and keeps them open by a process that does nothing.

The walls are the same as around a worker that bubblewrap itself starts, built by the same command line. Called by
`agent.sandbox.nursery`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess

import msgspec

from agent.errors import AgentError
from agent.sandbox.ending import reap
from agent.sandbox.environment import worker_environment
from modules.errors import MALFORMED

DEADLINE_S = 10.0
_HOLDER = ("cat",)  # ends with its input, and shows by an echo that everything is in place
_MAX_INFO = 4096


class NoNamespaces(AgentError):
    """They could not be made; the message says why."""

    key = "no-namespaces"


class _Info(msgspec.Struct, frozen=True):
    """What bubblewrap says of itself: the first process inside."""

    child: int = msgspec.field(name="child-pid")


class Namespaces:
    """`pid` is bubblewrap's own, `inside` a pidfd of the first process inside. They are there until `close`."""

    def __init__(self, holder: subprocess.Popen[bytes], inside: int, line: socket.socket) -> None:
        self.pid = holder.pid
        self.inside = inside
        self._holder = holder
        self._line = line

    @classmethod
    async def open(cls, wrapper: tuple[str, ...]) -> Namespaces:
        """`wrapper` is what `bubblewrap` gives, with its closing dashes. Raises NoNamespaces."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        told, tell = os.pipe()
        try:
            holder = _hold(wrapper, theirs, tell)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await _echo(ours)
                info = msgspec.json.decode(os.read(told, _MAX_INFO), type=_Info)
                return cls(holder, os.pidfd_open(info.child), ours)
            except BaseException:
                await _end(holder)
                raise
        except TimeoutError as error:
            ours.close()
            raise NoNamespaces(f"bubblewrap: no namespaces within {DEADLINE_S:g} s") from error
        except (OSError, *MALFORMED) as error:
            ours.close()
            raise NoNamespaces(f"bubblewrap: {str(error) or type(error).__name__}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(told)
            os.close(tell)

    async def close(self) -> None:
        """Ends whatever is still inside."""
        os.close(self.inside)
        self._line.close()
        await _end(self._holder)


def _hold(wrapper: tuple[str, ...], line: socket.socket, tell: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*wrapper[:-1], "--info-fd", str(tell), *wrapper[-1:], *_HOLDER],
        stdin=line.fileno(),
        stdout=line.fileno(),
        stderr=subprocess.DEVNULL,
        pass_fds=(tell,),
        env=worker_environment(os.environ),
        cwd="/",
        start_new_session=True,
    )


async def _echo(line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, b"\n")
    if not await loop.sock_recv(line, 1):
        raise OSError("it ended before its namespaces were made")


async def _end(holder: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(holder.pid, signal.SIGKILL)
    await reap(holder)
