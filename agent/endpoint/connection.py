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

from agent.endpoint.exchange import RETRY, Guard, Handler, Later, Limits, Refused, Reply, Request
from agent.endpoint.guard import barred, missing_token, needs_token
from agent.endpoint.heads import MAX_BYTES, Head, Heads

BUFFER_BYTES = 256 * 1024  # what is read at once
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_END = b"\r\n\r\n"
_NS_PER_MS = 1_000_000


class Shared:
    """What the connections of one endpoint have in common. `buffer`: a transport reads into it and hands it on at once;
    a buffer for each read, as asyncio makes it without, costs three times the rest of the reading.
    """

    def __init__(self, handler: Handler, limits: Limits, guard: Guard | None = None) -> None:
        self.handler = handler
        self.limits = limits
        self.guard = guard or Guard()
        self.heads = Heads()
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.held_bytes = 0
        self.draining = False
        self.latest: Connection | None = None  # whose request came last
        self.open: set[Connection] = set()
        self._empty = asyncio.Event()

    def closed(self, connection: Connection) -> None:
        self.open.discard(connection)
        if self.latest is connection:
            self.latest = None
        if not self.open:
            self._empty.set()

    async def wait_empty(self) -> None:
        while self.open:
            self._empty.clear()
            await self._empty.wait()


class Connection(asyncio.BufferedProtocol):
    """`_deadline` is that of idleness between messages, of arrival within one. `_deaf`: input is looked at no more.

    `_later` is set while a request is being answered elsewhere, by a Later or a task.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Request | Refused] = deque()
        self._later = False
        self._task: asyncio.Task[None] | None = None
        self._paused = False  # the client does not read
        self._deaf = False
        self._half_closed = False
        self._receiving = False
        self._barred: Refused | None = None
        self._token_needed = False
        self._deadline = time.monotonic() + self._limits.idle_s
        self._raw_head = b""  # what may be the bytes of `_head`
        self._body: list[bytes] = []
        self._clear()

    @property
    def under_way(self) -> bool:
        return self._receiving or bool(self._queue) or self._later

    def check_deadline(self, now: float) -> None:
        """Called from time to time."""
        if now < self._deadline or (self._later and not self._paused):
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
        sock = transport.get_extra_info("socket")
        self._barred = barred(self._shared.guard, sock)
        self._token_needed = needs_token(self._shared.guard, sock)
        if full:
            self._give_up(Refused(503, f"expected at most {self._limits.connections} connections, got more", RETRY))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deaf = True
        self._forget()
        if not self._later:
            self._shared.closed(self)

    def eof_received(self) -> bool:
        self._half_closed = True
        return bool(self._queue) or self._later  # a half-closed client still gets its answers

    def pause_writing(self) -> None:
        self._paused = True
        self._deadline = time.monotonic() + self._limits.body_s

    def resume_writing(self) -> None:
        self._paused = False
        self._deadline = time.monotonic() + self._limits.idle_s
        self._proceed()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._deaf:
            self.received(bytes(self._shared.buffer[:nbytes]))

    def received(self, data: bytes) -> None:
        """What has arrived. A request that is here whole, with a head that is known, is not parsed again."""
        end = data.find(_END) + len(_END)
        if not (self._receiving or self._later or self._paused or self._queue):
            shared = self._shared
            head = shared.heads.find(data[:end])
            if (
                head is not None
                and len(data) == end + head.length
                and shared.held_bytes + head.length <= self._limits.held_bytes
            ):
                shared.held_bytes += head.length
                self._handle(self._request(head, data[end:]))
                return
            self._raw_head = data[:end] if end <= MAX_BYTES else b""
        self._parse(data)

    def _parse(self, data: bytes) -> None:
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
        self._raw_head = self._raw_head if self._receiving else b""
        self._proceed()

    # What the parser calls

    def on_message_begin(self) -> None:
        if not self._receiving:
            self._begin()
            self._raw_head = b""  # the second message of what has arrived
        self._clear()

    def on_url(self, url: bytes) -> None:
        self._head.target += url
        self._check_head(len(self._head.target))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.add(name, value)
        self._check_head(self._head.named_bytes)

    def on_headers_complete(self) -> None:
        head = self._head
        self._headers_done = True
        self._check_body(head.length)
        self._deadline = time.monotonic() + self._limits.body_s
        if head.expects and self._transport is not None and not self._queue and not self._later:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        self._shared.held_bytes += len(body)
        self._check_body(self._size)
        if self._shared.held_bytes > self._limits.held_bytes:
            raise Refused(503, "expected fewer requests at once: their bodies fill the memory", RETRY)
        self._body.append(body)

    def on_message_complete(self) -> None:
        head = self._head
        head.method = self._parser.get_method()
        head.target, _, head.query = head.target.partition(b"?")
        head.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        if self._raw_head and self._size == head.length:
            self._shared.heads.keep(self._raw_head, head)
        self._queue.append(self._request(head, self._body[0] if len(self._body) == 1 else b"".join(self._body)))
        self._receiving = False
        self._clear()  # the queue, then the request under way, holds the bytes now
        self._deadline = time.monotonic() + self._limits.idle_s

    # Answers

    def _request(self, head: Head, body: bytes) -> Request | Refused:
        """Of one that has arrived whole."""
        shared = self._shared
        if self._barred is not None or self._token_needed:
            refused = self._barred or missing_token(shared.guard, head.target, head.authorization)
            if refused is not None:
                shared.held_bytes -= len(body)
                return refused
        arrived = time.perf_counter_ns()
        alone, shared.latest = shared.latest is self, self
        return Request(
            head.method, head.target, body, head.json_length, head.keep_alive, arrived,
            arrived + head.deadline_ms * _NS_PER_MS if head.deadline_ms else 0, alone, head.encoding, head.accepts,
            head.query, head.named, head.event_s,
        )  # fmt: skip

    def _proceed(self) -> None:
        """Answers what has arrived whole, until something takes longer or the client does not read."""
        while self._queue and not self._later and not self._paused and self._transport is not None:
            self._handle(self._queue.popleft())
        if self._transport is None or self._transport.is_closing():
            return
        if len(self._queue) >= self._limits.pipeline:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _handle(self, request: Request | Refused) -> None:
        if isinstance(request, Refused):
            self._give_up(request)
            return
        answer = self._shared.handler.handle(request)
        if isinstance(answer, Reply):
            self._answer(request, answer)
        elif isinstance(answer, Later):
            self._later = True
            answer.told = self._told
        else:
            self._later = True
            self._task = asyncio.ensure_future(self._await(request, answer))

    async def _await(self, request: Request, answer: Awaitable[Reply]) -> None:
        self._told(request, await answer)

    def _told(self, request: Request, reply: Reply) -> None:
        self._later = False
        self._answer(request, reply)
        if self._transport is None:
            self._shared.closed(self)
        elif self._queue:
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
        self._head = Head()
        self._body = []
        self._size = self._head_bytes = 0
        self._headers_done = False

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
