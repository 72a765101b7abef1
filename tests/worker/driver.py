"""A worker process as its parent sees it, and a client of its endpoint: real sockets, nothing in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from agent.sandbox.given import Given
from agent.sandbox.level import namespaces
from agent.sandbox.nursery import Forked, Nursery
from agent.sandbox.protocol import (
    BlobTaken,
    Broken,
    Notice,
    Order,
    Ping,
    Pong,
    Ready,
    SampleTaken,
    SelfTest,
    Serve,
    Serving,
    Start,
    Stats,
    WindowClosed,
    frame,
    read_notice,
)
from firmware_profiles.confinement import Confinement
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy, encode_manifest
from modules.messages import Sample, decode_sample
from modules.pieces import BlobPiece, decode_piece
from modules.windows import Window, decode_window

DEADLINE_S = 30.0
NO_SAMPLES = SamplingPolicy(rate=0.0, window_s=3600)
_Notice = TypeVar("_Notice", bound=Notice)


def write_module(slot: Path, files: dict[str, bytes], **fields: Any) -> Manifest:
    """A slot with these files, and the manifest that describes them."""
    slot.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (slot / path).parent.mkdir(parents=True, exist_ok=True)
        (slot / path).write_bytes(data)
    entries = tuple(_entry(path, data) for path, data in sorted(files.items()))
    defaults: dict[str, Any] = {
        "name": "digits",
        "version": 7,
        "profile": "pi",
        "lineage": Lineage("digits", 7),
        "runtime": Runtime(),
        "files": entries,
    }
    return Manifest(**{**defaults, **fields})


def _entry(path: str, data: bytes) -> FileEntry:
    size = 256 * 1024
    cut = [data[i : i + size] for i in range(0, len(data), size)]
    return FileEntry(path, len(data), sha256_hex(data), tuple(Chunk(sha256_hex(c), len(c)) for c in cut))


class ForkedProcess:
    """A worker that was forked, with the words of a subprocess."""

    def __init__(self, forked: Forked) -> None:
        self.pid = forked.pid
        self._forked = forked
        self._ended: asyncio.Task[int] | None = None

    def kill(self) -> None:
        if self._ended is None or not self._ended.done():
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        self._ended = self._ended or asyncio.create_task(self._forked.ended())
        code = await asyncio.shield(self._ended)
        self._forked.release()
        return code


class WorkerDriver:
    """`async with WorkerDriver(slot, manifest) as worker`: the process, its channel and its Unix endpoint."""

    def __init__(
        self,
        slot: Path,
        manifest: Manifest,
        sampling: SamplingPolicy = NO_SAMPLES,
        confine: bool = True,
        uid: int = 0,
        listener: socket.socket | None = None,
        cage: tuple[str, ...] = (),
        floor: Confinement = Confinement.UNKNOWN,
        nursery: Nursery | None = None,
        fast: socket.socket | None = None,
        given: Given | None = None,
    ) -> None:
        """`listener` is another worker's socket, to take over from it, and `fast` that for clients over shared memory;
        `cage` what to write before the command. With a `nursery` the worker is forked, and `cage` makes the namespaces
        that it enters.
        """
        self.slot = slot
        self.manifest = manifest
        self.path = str(slot.parent / "endpoint.sock")
        self.windows: list[Window] = []
        self.samples: list[Sample] = []
        self.pieces: list[BlobPiece] = []
        self._sampling = sampling
        self._confine = confine
        self._uid = uid
        self._cage = cage
        self._floor = floor
        self._nursery = nursery
        self._given = given or Given()
        self.listener = listener.dup() if listener is not None else self._bound()
        self.fast = fast.dup() if fast is not None else self._bound_fast()
        self._answers: asyncio.Queue[Notice] = asyncio.Queue(100)

    async def __aenter__(self) -> WorkerDriver:
        ours, theirs = socket.socketpair()
        self.process = await self._begun(theirs.fileno())
        theirs.close()
        self._reader, self.writer = await asyncio.open_connection(sock=ours)
        self._pump = asyncio.create_task(self._read())
        return self

    async def _begun(self, channel: int) -> asyncio.subprocess.Process | ForkedProcess:
        if self._nursery is None:
            return await asyncio.create_subprocess_exec(
                *self._cage, sys.executable, "-m", "agent.sandbox.worker", str(channel),
                pass_fds=(channel, *self._listening), cwd=Path(__file__).resolve().parents[2],
            )  # fmt: skip
        into = os.dup(2)
        try:
            return ForkedProcess(await self._nursery.fork((channel, into, *self._listening), self._cage))
        finally:
            os.close(into)

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._pump
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
        self.listener.close()
        self.fast.close()

    async def order(self, order: Order, expected: type[_Notice]) -> _Notice:
        self.send(order)
        return await self.answered(expected)

    async def answered(self, expected: type[_Notice]) -> _Notice:
        async with asyncio.timeout(DEADLINE_S):
            notice = await self._answers.get()
        assert isinstance(notice, expected), notice
        return notice

    def send(self, order: Order) -> None:
        self.writer.write(frame(order))

    async def start(self) -> Ready:
        return await self._start(Ready)

    async def start_broken(self) -> Broken:
        return await self._start(Broken)

    async def _start(self, expected: type[_Notice]) -> _Notice:
        given = msgspec.structs.replace(self._given, fast=self.fast.fileno())
        order = Start(
            str(self.slot), encode_manifest(self.manifest), self._sampling, (self.listener.fileno(),), self._uid,
            self._confine, outside=namespaces(), floor=self._floor, given=given,
        )  # fmt: skip
        return await self.order(order, expected)

    async def serve(self) -> Ready:
        """Start, self-test when there is a golden, serve."""
        ready = await self.start()
        if self.manifest.health.golden:
            self.send(SelfTest())
            async with asyncio.timeout(DEADLINE_S):
                await self._answers.get()
        await self.order(Serve(), Serving)
        return ready

    async def stats(self) -> Stats:
        return (await self.order(Ping(), Pong)).stats

    async def exit_code(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()

    async def connect(self) -> Client:
        return Client(*await asyncio.open_unix_connection(self.path))

    async def ask(self, raw: bytes) -> Response:
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            return await client.ask(raw)
        finally:
            await client.close()

    async def infer(self, head: object, blobs: bytes = b"", **options: Any) -> Response:
        return await self.ask(infer_request(head, blobs, **options))

    @property
    def _listening(self) -> tuple[int, ...]:
        ring = (self._given.ring,) if self._given.ring >= 0 else ()
        return self.listener.fileno(), self.fast.fileno(), *ring

    def _bound_fast(self) -> socket.socket:
        path = Path(self.path.replace(".sock", ".fast.sock"))
        path.unlink(missing_ok=True)  # of a worker from which nobody takes it over
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        listener.listen(128)
        return listener

    def _bound(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(16)
        return listener

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                notice = await read_notice(self._reader)
                if isinstance(notice, WindowClosed):
                    self.windows.append(decode_window(notice.window))
                elif isinstance(notice, SampleTaken):
                    self.samples.append(decode_sample(notice.sample))
                elif isinstance(notice, BlobTaken):
                    self.pieces.append(decode_piece(notice.piece))
                else:
                    self._answers.put_nowait(notice)


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    blobs: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body[: int(length)] if length else self.body)

    @property
    def error(self) -> str:
        assert set(self.json) == {"error"}
        return str(self.json["error"])

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """An output, however it was sent."""
        at = int(self.headers.get("inference-header-content-length", 0))
        for output in self.json["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            kinds = {"FP32": "<f4", "INT64": "<i8", "FP64": "<f8"}
            if output["name"] == name and size is not None:
                return np.frombuffer(self.body[at : at + size], kinds[output["datatype"]]).reshape(output["shape"])
            if output["name"] == name:
                return np.array(output["data"]).reshape(output["shape"])
            at += size or 0
        raise KeyError(name)


class Client:
    """One HTTP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, raw: bytes) -> Response:
        self.writer.write(raw)
        return await self.read()

    async def read(self) -> Response:
        """The next response. Raises IncompleteReadError when the connection ends first."""
        async with asyncio.timeout(DEADLINE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Response(int(first.split()[1]), headers, body)

    async def ended(self) -> bool:
        """Waits for the server to close."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read() == b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: device", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def infer_request(head: object, blobs: bytes = b"", path: str = "/v2/models/digits/infer", header: int = -1) -> bytes:
    """As tritonclient sends it: the header only when bytes follow the JSON. `header` lies about its length."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    extra = [f"Inference-Header-Content-Length: {len(text) if header < 0 else header}"] if blobs or header >= 0 else []
    return request("POST", path, text + blobs, *extra)


def json_input(rows: np.ndarray[Any, Any], name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(rows.shape), "data": rows.ravel().tolist()}


def binary_input(rows: np.ndarray[Any, Any], name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    size = {"binary_data_size": rows.nbytes}
    return {"name": name, "datatype": datatype, "shape": list(rows.shape), "parameters": size}


def bytes_tensor(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def running_as_root() -> bool:
    return os.geteuid() == 0
