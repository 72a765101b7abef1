"""What a connection and a handler give each other: requests, replies, refusals, and the limits on them.

No sockets and no tensors here. `connection` makes Requests and writes Replies, `resources` turns one into the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 413: "Content Too Large", 415: "Unsupported Media Type",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
    504: "Gateway Timeout",
}  # fmt: skip
_START = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in _REASONS.items()}
RETRY = b"Retry-After: 1\r\n"


class Limits(msgspec.Struct, frozen=True):
    """What clients may take. Times in seconds."""

    body_bytes: int
    header_bytes: int = 16 * 1024
    held_bytes: int = 64 * 1024 * 1024  # of all bodies that are not answered yet
    connections: int = 512
    pipeline: int = 32
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 300.0
    linger_s: float = 1.0
    sweep_s: float = 0.5


class Request(msgspec.Struct):
    """One whole request. `target` is the path without query; `json_length` is Inference-Header-Content-Length."""

    method: bytes
    target: bytes
    body: bytes
    json_length: int | None
    keep_alive: bool
    arrived_ns: int


class Reply(msgspec.Struct):
    """An answer, JSON unless it is `binary`; `after` is called once it was written, for what must not delay it."""

    status: int
    body: bytes
    json_length: int | None = None
    headers: bytes = b""
    after: Callable[[], None] | None = None
    binary: bool = False

    def rendered(self, last: bool) -> bytes:
        """The bytes to send; `last` tells the client that the connection ends."""
        plain = self.json_length is None and not self.binary
        kind = b"application/json" if plain else b"application/octet-stream"
        extra = self.headers
        if self.json_length is not None:
            extra += b"Inference-Header-Content-Length: %d\r\n" % self.json_length
        if last:
            extra += b"Connection: close\r\n"
        head = _START[self.status] + b"Content-Type: %b\r\nContent-Length: %d\r\n" % (kind, len(self.body))
        return b"".join((head, extra, b"\r\n", self.body))


class Refused(Exception):
    """A request that is not answered as asked. `status` is HTTP's; the text says what was expected and what came."""

    def __init__(self, status: int, text: str, headers: bytes = b"") -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class Handler(Protocol):
    """What answers requests. `handle` never raises; `refused` answers a request that did not arrive whole."""

    def handle(self, request: Request) -> Reply | Awaitable[Reply]: ...

    def refused(self, error: Refused) -> Reply: ...
