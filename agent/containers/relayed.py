"""A container that serves by itself and the relay before it, as one worker. Called by `agent.containers.runtime`."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

from agent.containers.body import ContainerBody
from agent.errors import WorkerError
from agent.sandbox.body import ProcessBody
from agent.sandbox.ending import Spawned
from agent.sandbox.environment import worker_environment

RELAY = (sys.executable, "-P", "-m", "agent.containers.relay")


class Joined:
    """One life: when one of the two ends, the other does. How the container ended goes before."""

    def __init__(self, container: ContainerBody, relay: ProcessBody) -> None:
        self.pid = relay.pid
        self.memory = ""
        self._container = container
        self._relay = relay
        self._gone = False
        self._first = False  # whether the container ended before the relay
        self._watching = asyncio.create_task(self._watch(), name=f"container-of-{relay.pid}")

    @property
    def out_of_memory(self) -> bool:
        return self._container.out_of_memory

    def kill(self) -> None:
        self._relay.kill()
        self._container.kill()

    async def ended(self) -> int:
        code = await self._relay.ended()
        self._gone = True
        self._container.kill()
        await self._watching
        return await self._container.ended() if self._first else code

    def weigh(self, weight: int) -> None:
        self._relay.weigh(weight)

    def cap(self, percent: int) -> None:
        self._relay.cap(percent)

    async def _watch(self) -> None:
        await self._container.ended()
        if not self._gone:
            self._first = True
            self._relay.kill()


def start_relay(name: str, body: ContainerBody, listen: tuple[int, ...]) -> tuple[Joined, socket.socket, int]:
    """Both bodies as one, the channel to the relay, and the pipe with what it prints. Raises WorkerError."""
    ours, theirs = socket.socketpair()
    out, into = os.pipe()
    try:
        process = subprocess.Popen(
            [*RELAY, str(body.pid), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=into,
            stderr=into,
            pass_fds=(theirs.fileno(), *listen),
            env=worker_environment(os.environ),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        os.close(out)
        raise WorkerError(f"worker of {name}: no relay before its container: {error}", "spawn-failed") from error
    finally:
        theirs.close()
        os.close(into)
    return Joined(body, ProcessBody(Spawned(process))), ours, out
