"""A small HTTPS server whose answers a test writes itself, byte by byte: the other party, honest or not."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.certificates import Pair, make_server

END = b"\r\n\r\n"


@dataclass(frozen=True)
class Asked:
    """One request: its first line's target, and its headers by lower-case name."""

    target: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"])
        assert match
        return int(match[1]), int(match[2]) + 1


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Web:
    """Where it is, what it was asked, and how many connections it took."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    @property
    def origin(self) -> tuple[str, int]:
        return "localhost", self.port

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


@asynccontextmanager
async def web(folder: Path, ca: Pair, answer: Answer, name: str = "localhost") -> AsyncIterator[Web]:
    """Serves on loopback with a certificate of `ca` for `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_server(ca, name).write(folder / "web", name))
    here = Web()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.connections += 1
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            # Cancelled only at the end of the test, when nobody waits for it: it then just ends.
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
                while True:
                    head = (await reader.readuntil(END)).decode().split("\r\n")
                    pairs = (line.partition(":") for line in head[1:] if line)
                    asked = Asked(head[0].split()[1], {key.lower(): value.strip() for key, _, value in pairs})
                    here.asked.append(asked)
                    await answer(asked, writer)
                    await writer.drain()
        finally:
            serving.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
        for task in (ending := list(serving)):
            task.cancel()
        await asyncio.gather(*ending)


def reply(writer: asyncio.StreamWriter, status: int, body: bytes = b"", **headers: str) -> None:
    """One answer with a length; underscores in header names become hyphens."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body)


def ranged(writer: asyncio.StreamWriter, asked: Asked, data: bytes) -> None:
    """The range that was asked for, as a server should answer it."""
    start, end = asked.range
    if start >= len(data):
        reply(writer, 416)
        return
    part = data[start:end]
    reply(writer, 206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(data)}")
