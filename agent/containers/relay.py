"""Before an image that serves by itself: `python -P -m agent.containers.relay PID FD`. Holds the endpoint's sockets.

It enters the network of the container whose first process is PID, gives up what it may, and carries bytes between the
endpoint and the image's own port. To the agent it is a worker: ready when the server is, tested by golden inputs over
the Open Inference Protocol, drained at a hand-over. It looks into nothing: no windows, no samples, and what it counts
are connections. Started by `agent.containers.relayed`.
Source: setns(2), network_namespaces(7); Open Inference Protocol 2.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - imported by others later, when files can no longer be read
import ctypes
import encodings.idna  # noqa: F401 - as above
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.errors import AgentError, WorkerError
from agent.sandbox.confine import ConfineError, die_with_parent, drop_rights
from agent.sandbox.level import level_of, separated
from agent.sandbox.protocol import Notice, Order, Passed, Ready, Start, Stats
from agent.sandbox.worker import Worker
from modules.containers import Container
from modules.errors import MALFORMED
from modules.execution import StageExecution
from modules.manifest import SamplingPolicy, decode_manifest
from modules.tensors import decode_golden

if TYPE_CHECKING:
    from agent.backends import Array

ASK_S = 0.1  # between two questions whether it is ready
ANSWER_S = 5.0
SHARE = 0.8  # of the deadline for loading: then it is known what it is that does not come
GOLDEN_S = 60.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_CONNECTIONS = 400  # each takes two of the descriptors
_BLOCK = 64 * 1024
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b'Content-Length: 42\r\n\r\n{"error":"the module\'s server is not there"}'
)


class Relay:
    """One server behind one endpoint. `ready` is what to answer to Start, once `wait` has returned."""

    def __init__(self, order: Start, pid: str) -> None:
        """Raises ConfineError, ManifestError."""
        self._manifest = decode_manifest(order.manifest)
        container = self._manifest.runtime.container
        if container is None:
            raise WorkerError(f"{self._manifest.name}: expected a container", "bad-manifest")
        self._container: Container = container
        self._slot = Path(order.slot)
        self._golden = self._read_golden()
        words = separated(order.outside, pid)  # of the container: while we may still look
        level = level_of(["rlimits", *words], root=False) if "container" in words else level_of(words, root=False)
        for who, wanted in (("the module", self._manifest.requires.confinement), ("this device", order.floor)):
            if not level.reaches(wanted):
                text = f"confinement: {who} requires at least {wanted.value}, got {level.value} ({'+'.join(words)})"
                raise ConfineError(f"{text}; nothing is served")
        _give_up(order.uid)
        self._sockets = [socket.socket(fileno=fd) for fd in order.listen]
        self._accepting = self._full = False
        self._carrying: set[asyncio.Task[None]] = set()
        self._connections = self._errors = 0
        self._held = False
        execution = StageExecution("image", note=f"served by {container.digest[:19]} on port {container.port}")
        self.ready = Ready("+".join(words), str(execution), 0.0, level, (execution,))

    async def wait(self) -> None:
        """Until the server says that it is ready. Raises WorkerError."""
        last = "no answer"
        try:
            async with asyncio.timeout(SHARE * self._manifest.health.load_deadline_s):
                while True:
                    last = await asyncio.to_thread(self._is_ready)
                    if not last:
                        return
                    await asyncio.sleep(ASK_S)
        except TimeoutError:
            where = f"port {self._container.port}, {self._container.health}"
            text = f"the image's server is not ready at {where} after {self._manifest.health.load_deadline_s:g} s"
            raise WorkerError(f"{text}: {last}", "load-failed") from None

    def self_test(self) -> Passed:
        """Raises WorkerError (golden-mismatch), TensorError."""
        from agent.sandbox.self_test import check_golden

        if self._golden is None:
            return Passed(0, 0.0)
        golden, health = decode_golden(self._golden), self._manifest.health
        return Passed(len(golden.cases), check_golden(golden, self._predict, health.rtol, health.atol))

    async def serve(self) -> None:
        for one in self._sockets:
            one.setblocking(False)
        self._accept_more(True)

    async def drain(self, deadline_s: float) -> int:
        """How many connections were cut."""
        self._full = False
        self._accept_more(False)
        if self._carrying:
            await asyncio.wait(set(self._carrying), timeout=deadline_s)
        cut = len(self._carrying)
        for task in list(self._carrying):
            task.cancel()
        return cut

    def hold(self, requests: bool, sources: bool) -> None:
        """New connections are refused while it is too hot; there are no sources here."""
        self._held = requests

    def set_policy(self, policy: SamplingPolicy) -> None:
        """Nothing is sampled here."""

    def stats(self) -> Stats:
        return Stats(requests=self._connections, errors=self._errors, in_flight=len(self._carrying))

    def _read_golden(self) -> bytes | None:
        """With what compares them: later, no file can be read."""
        path = self._manifest.health.golden
        if not path:
            return None
        import agent.sandbox.self_test  # noqa: F401 - brings NumPy, which is for this alone

        return (self._slot / path).read_bytes()

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._container.port}{path}"

    def _is_ready(self) -> str:
        """What keeps it from being so, or nothing."""
        try:
            with urllib.request.urlopen(self._url(self._container.health), timeout=ANSWER_S) as answer:  # noqa: S310
                return "" if answer.status == 200 else f"status {answer.status}"
        except (OSError, ValueError) as error:
            return str(error)[:200]

    def _predict(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """By the protocol's JSON form."""
        from agent.endpoint.codec import from_json, to_json

        types = {spec.name: spec.datatype for spec in (*self._manifest.inputs, *self._manifest.outputs)}
        tensors = [
            {"name": name, "datatype": types[name], "shape": list(array.shape), "data": to_json(types[name], array)}
            for name, array in inputs.items()
        ]
        body = msgspec.json.encode({"inputs": tensors})
        url = self._url(f"/v2/models/{self._manifest.name}/infer")
        try:
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
            with urllib.request.urlopen(asked, timeout=GOLDEN_S) as answer:  # noqa: S310 - always http
                said = msgspec.json.decode(answer.read(MAX_ANSWER_BYTES), type=_Answer)
        except (OSError, ValueError, *MALFORMED) as error:
            text = f"POST {url}: expected an answer of the Open Inference Protocol, got {str(error)[:300]}"
            raise WorkerError(text, "golden-failed") from error
        return {one.name: from_json(one.name, one.datatype, one.shape, bytes(one.data)) for one in said.outputs}

    def _accept_more(self, wanted: bool) -> None:
        """Not by asyncio's server: that drops what it has accepted just before it is closed."""
        if wanted == self._accepting:
            return
        self._accepting = wanted
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            if wanted:
                loop.add_reader(one, self._accept, one)
            else:
                loop.remove_reader(one)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError:  # somebody else took it, or it went away
            return
        connection.setblocking(False)
        self._connections += 1
        task = asyncio.create_task(self._accepted(connection), name="connection")
        self._carrying.add(task)
        task.add_done_callback(self._carried)
        if len(self._carrying) >= MAX_CONNECTIONS:
            self._accept_more(False)  # others wait in the backlog
            self._full = True

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        if self._full:
            self._full = False
            self._accept_more(True)

    async def _accepted(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=_BLOCK)
        try:
            await self._carry(reader, writer)
            writer.close()
            await writer.wait_closed()  # what is on its way is part of the answer
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()  # one side went away, or the drain's deadline came

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                there, to = await asyncio.open_connection("127.0.0.1", self._container.port, limit=_BLOCK)
        except OSError:
            self._errors += 1
            writer.write(_REFUSED)
            await writer.drain()
            return
        try:
            onward = asyncio.create_task(_pump(reader, to), name="onward")
            try:
                await _pump(there, writer)  # the server has the last word
            finally:
                onward.cancel()
                await asyncio.wait([onward])
        finally:
            to.close()


class RelayWorker(Worker):
    """The worker's loop, with a relay where the session is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pid: str) -> None:
        super().__init__(reader, writer)
        self._pid = pid

    async def _done(self, order: Order) -> Notice | None:
        if not isinstance(order, Start):
            return await super()._done(order)
        relay = Relay(order, self._pid)
        await relay.wait()
        self._session = relay  # type: ignore[assignment]  # answers to the same orders
        return relay.ready


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw


class _Answer(msgspec.Struct):
    outputs: tuple[_Tensor, ...]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(_BLOCK):
        writer.write(block)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def enter_network(pid: str) -> None:
    """Of a process: for this thread, and those that it starts. Raises AgentError."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(handle, _NEW_NETWORK) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(handle)
    except OSError as error:
        text = f"expected to enter the network of the module's container (process {pid}), got {error.strerror}"
        raise AgentError(f"{text}; only an agent that is root can serve an image's own port", "load-failed") from error


def _give_up(uid: int) -> None:
    """Another user where there is one, and no capabilities. Landlock stays away: it would forbid to connect, and the
    only network that is left is the container's.
    """
    if os.geteuid() == 0 and uid:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise ConfineError(f"expected to become user {uid}, got {error}; nothing is served") from error
        die_with_parent(0)  # a change of user clears it
    drop_rights()


async def _run(pid: str, channel: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel)
    await RelayWorker(reader, writer, pid).run()


def main(arguments: list[str]) -> None:
    die_with_parent(os.getppid())
    pid, handle = arguments
    channel = socket.socket(fileno=int(handle))
    channel.setblocking(False)
    enter_network(pid)
    asyncio.run(_run(pid, channel))
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
