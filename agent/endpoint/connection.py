"""One HTTP/1.1 connection: parsing (httptools), limits, order of answers, and how it ends.

Knows nothing of tensors: a Handler answers whole requests, at once or later. Requests are answered in order, one at a
time, and the next waits while the client does not read. Made by `http`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable

import httptools

from agent.endpoint.exchange import RETRY, Handler, Limits, Refused, Reply, Request

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_READ = ("inference-header-content-length", "content-length", "expect", "content-encoding")
_READ_LENGTHS = frozenset(len(name) for name in _READ)  # a cheap first look: most headers are none of ours


class Shared:
    """What the connections of one endpoint have in common."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.held_bytes = 0
        self.draining = False
        self.open: set[Connection] = set()
        self._empty = asyncio.Event()

    def closed(self, connection: Connection) -> None:
        self.open.discard(connection)
        if not self.open:
            self._empty.set()

    async def wait_empty(self) -> None:
        while self.open:
            self._empty.clear()
            await self._empty.wait()


class Connection(asyncio.Protocol):
    """`_deadline` is that of idleness between messages, of arrival within one. `_deaf`: input is looked at no more."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Request | Refused] = deque()
        self._task: asyncio.Task[None] | None = None
        self._paused = False  # the client does not read
        self._deaf = False
        self._half_closed = False
        self._receiving = False
        self._deadline = time.monotonic() + self._limits.idle_s
        self._json_length: int | None = None
        self._body: list[bytes] = []
        self._clear()

    @property
    def under_way(self) -> bool:
        return self._receiving or bool(self._queue) or self._task is not None

    def check_deadline(self, now: float) -> None:
        """Called from time to time."""
        if now < self._deadline or (self._task is not None and not self._paused):
            return  # in time, or we are the slow one
        if self._receiving and not self._deaf:
            self._give_up(Refused(408, "expected the whole request in time, got a part of it"))
        else:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """At the end of a drain: with a request under way there is nothing left but to cut it, an idle client is told
        in the proper way, so that one that sends just now knows that its request was not looked at.
        """
        if self._transport is not None and not self.under_way:
            self._transport.close()
        else:
            self.abort()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - stream sockets have no other
        self._transport = transport
        full = len(self._shared.open) >= self._limits.connections
        self._shared.open.add(self)
        if full:
            self._give_up(Refused(503, f"expected at most {self._limits.connections} connections, got more", RETRY))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deaf = True
        self._forget()
        if self._task is None:
            self._shared.closed(self)

    def eof_received(self) -> bool:
        self._half_closed = True
        return bool(self._queue) or self._task is not None  # a half-closed client still gets its answers

    def pause_writing(self) -> None:
        self._paused = True
        self._deadline = time.monotonic() + self._limits.body_s

    def resume_writing(self) -> None:
        self._paused = False
        self._deadline = time.monotonic() + self._limits.idle_s
        self._proceed()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._receiving:
            self._begin()
        try:
            self._parser.feed_data(data)
            if self._receiving and not self._headers_done:
                self._head_bytes += len(data)
                self._check_head(self._head_bytes)
        except Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # we stay with HTTP/1.1, which a server may; the parser cannot go on
        except httptools.HttpParserError as error:
            cause = error.__context__  # what our own callback raised comes wrapped
            self._refuse(cause if isinstance(cause, Refused) else Refused(400, f"expected HTTP/1.1: {error}"))
        self._proceed()

    # What the parser calls

    def on_message_begin(self) -> None:
        if not self._receiving:
            self._begin()
        self._clear()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._check_head(len(self._url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._named_bytes += len(name) + len(value)
        self._check_head(self._named_bytes)
        if len(name) not in _READ_LENGTHS:
            return
        name = name.lower()
        if name == b"content-length":
            self._check_body(_number("Content-Length", value))
        elif name == b"inference-header-content-length":
            self._json_length = _number("Inference-Header-Content-Length", value)
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Refused(415, f"expected a body without Content-Encoding, got {value[:40].decode('latin-1')}")

    def on_headers_complete(self) -> None:
        self._headers_done = True
        self._deadline = time.monotonic() + self._limits.body_s
        if self._expects and self._transport is not None and not self._queue and self._task is None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        self._shared.held_bytes += len(body)
        self._check_body(self._size)
        if self._shared.held_bytes > self._limits.held_bytes:
            raise Refused(503, "expected fewer requests at once: their bodies fill the memory", RETRY)
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._queue.append(
            Request(
                method=self._parser.get_method(),
                target=self._url.partition(b"?")[0],
                body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
                json_length=self._json_length,
                keep_alive=self._parser.should_keep_alive() and not self._parser.should_upgrade(),
                arrived_ns=time.perf_counter_ns(),
            )
        )
        self._receiving = False
        self._clear()  # the queue, then the request under way, holds the bytes now
        self._deadline = time.monotonic() + self._limits.idle_s

    # Answers

    def _proceed(self) -> None:
        """Answers what has arrived whole, until something takes longer or the client does not read."""
        while self._queue and self._task is None and not self._paused and self._transport is not None:
            request = self._queue.popleft()
            if isinstance(request, Refused):
                self._give_up(request)
                return
            answer = self._shared.handler.handle(request)
            if isinstance(answer, Reply):
                self._answer(request, answer)
            else:
                self._task = asyncio.ensure_future(self._answer_later(request, answer))
        if self._transport is None or self._transport.is_closing():
            return
        if len(self._queue) >= self._limits.pipeline:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    async def _answer_later(self, request: Request, answer: Awaitable[Reply]) -> None:
        try:
            self._answer(request, await answer)
        finally:
            self._task = None
            if self._transport is None:
                self._shared.closed(self)
        self._proceed()

    def _answer(self, request: Request, reply: Reply) -> None:
        self._shared.held_bytes -= len(request.body)
        last = not request.keep_alive or self._shared.draining or (self._half_closed and not self._queue)
        if self._transport is not None:
            self._transport.write(reply.rendered(last))
            self._deadline = time.monotonic() + self._limits.idle_s
            if last:
                self._finish()
        if reply.after is not None:
            reply.after()

    def _refuse(self, refused: Refused) -> None:
        """After what came before it has been answered. Where the next request would start is not known any more."""
        self._receiving = True
        self._deaf = True
        self._queue.append(refused)

    def _give_up(self, refused: Refused) -> None:
        reply = self._shared.handler.refused(refused)
        if self._transport is not None:
            self._transport.write(reply.rendered(last=True))
            self._finish()

    def _finish(self) -> None:
        """Ends the connection. A client that still sends is given time to read its answer: closing at once would
        reset the connection and take the answer away.
        """
        self._deaf = True
        self._forget()
        if self._transport is None or self._transport.is_closing():
            return
        if self._receiving and self._transport.can_write_eof():
            self._receiving = False
            self._transport.write_eof()
            self._transport.resume_reading()
            self._deadline = time.monotonic() + self._limits.linger_s
        else:
            self._transport.close()

    def _begin(self) -> None:
        self._receiving = True
        self._deadline = time.monotonic() + self._limits.head_s

    def _clear(self) -> None:
        self._url = b""
        self._body = []
        self._size = self._head_bytes = self._named_bytes = 0
        self._headers_done = self._expects = False
        self._json_length = None

    def _forget(self) -> None:
        """Gives back the memory of what will not be answered."""
        queued = sum(len(request.body) for request in self._queue if isinstance(request, Request))
        self._shared.held_bytes -= self._size + queued
        self._queue.clear()
        self._clear()

    def _check_head(self, size: int) -> None:
        if size > self._limits.header_bytes:
            raise Refused(431, f"expected at most {self._limits.header_bytes} bytes of headers, got at least {size}")

    def _check_body(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise Refused(413, f"expected a body of at most {self._limits.body_bytes} bytes, got at least {size}")


def _number(name: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise Refused(400, f"{name}: expected a number, got {value[:40].decode('latin-1')!r}")
    return int(value)
