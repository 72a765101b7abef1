"""What a connection and a handler give each other: requests, replies, refusals, and the limits on them.

No sockets and no tensors here. `connection` makes Requests and writes Replies, `resources` turns one into the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 413: "Content Too Large", 415: "Unsupported Media Type",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
_START = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in _REASONS.items()}
# The answer to a binary request, which is most of what is ever sent, in one go.
_TENSORS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n"
    b"Inference-Header-Content-Length: %d\r\n\r\n%b"
)
JSON, BYTES, TEXT = b"application/json", b"application/octet-stream", b"text/plain; version=0.0.4; charset=utf-8"
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


class Guard(msgspec.Struct, frozen=True):
    """Who may ask. `token`: what a TCP client must show as `Authorization: Bearer` (empty: nothing); `peers`: the user
    ids that may use the Unix socket (empty: all). The targets in `open` are for everybody.
    """

    token: bytes = b""
    peers: frozenset[int] = frozenset()
    open: frozenset[bytes] = frozenset()


class Request(msgspec.Struct):
    """One whole request. `target` is the path without query; `json_length` is Inference-Header-Content-Length.

    `due_ns` is when the client stops waiting, on the clock of `arrived_ns` (0: it does not say). `alone`: the last
    request came over the same connection, so that there is hardly another to run this one together with. `event_s`:
    when it happened what the inputs are of, in seconds since the epoch (0: it does not say).
    """

    method: bytes
    target: bytes
    body: bytes
    json_length: int | None
    keep_alive: bool
    arrived_ns: int
    due_ns: int = 0
    alone: bool = True
    encoding: bytes = b""  # of the body
    accepts: bytes = b""  # Accept-Encoding
    query: bytes = b""
    named: Sequence[tuple[bytes, bytes]] = ()  # every header as it came
    event_s: float = 0.0


class Reply(msgspec.Struct):
    """An answer: `body`, then `blobs`. JSON, or bytes where `json_length` is given, unless `kind` says what it is.
    `after` is called once it was written, for what must not delay it.
    """

    status: int
    body: bytes
    json_length: int | None = None
    headers: bytes = b""
    after: Callable[[], None] | None = None
    kind: bytes = b""
    blobs: tuple[bytes, ...] = ()

    def rendered(self, last: bool) -> bytes:
        """The bytes to send; `last` tells the client that the connection ends."""
        size = len(self.body)
        for blob in self.blobs:
            size += len(blob)
        if self.json_length is not None and self.status == 200 and not last and not self.headers:
            return b"".join((_TENSORS % (size, self.json_length, self.body), *self.blobs))
        extra = self.headers
        if self.json_length is not None:
            extra += b"Inference-Header-Content-Length: %d\r\n" % self.json_length
        if last:
            extra += b"Connection: close\r\n"
        kind = self.kind or (JSON if self.json_length is None else BYTES)
        start = _START.get(self.status) or b"HTTP/1.1 %d \r\n" % self.status  # a script may answer with any
        head = start + b"Content-Type: %b\r\nContent-Length: %d\r\n" % (kind, size)
        return b"".join((head, extra, b"\r\n", self.body, *self.blobs))


class Later:
    """A reply that comes when others are done: `tell` it, once. The connection sets `told` before it goes on."""

    __slots__ = ("reply", "request", "told")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.reply: Reply | None = None
        self.told: Callable[[Request, Reply], None] | None = None

    def tell(self, reply: Reply) -> None:
        """On the loop's thread. Before `told` is set, the reply is kept: whoever made the request gives it back."""
        if self.told is None:
            self.reply = reply
        else:
            self.told(self.request, reply)


class Refused(Exception):
    """A request that is not answered as asked. `status` is HTTP's; the text says what was expected and what came."""

    def __init__(self, status: int, text: str, headers: bytes = b"") -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class Handler(Protocol):
    """What answers requests. `handle` never raises; `refused` answers a request that did not arrive whole."""

    def handle(self, request: Request) -> Reply | Later | Awaitable[Reply]: ...

    def refused(self, error: Refused) -> Reply: ...
