"""Heads that are looked up instead of parsed: the same answer the second time, whatever surrounds them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.endpoint.exchange import Limits, Refused, Reply, Request
from agent.endpoint.heads import MAX_KEPT, Head, Heads
from agent.endpoint.http import Endpoint
from worker.driver import Client

HEAD = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n"


class Telling:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes, bytes]] = []

    def handle(self, request: Request) -> Reply:
        self.seen.append((request.method, request.target, request.body))
        return Reply(200, b"%b %b %b" % (request.method, request.target, request.body))

    def refused(self, error: Refused) -> Reply:
        self.seen.append((b"", b"", b""))
        return Reply(error.status, str(error).encode())


@pytest.fixture
async def telling(tmp_path: Path) -> AsyncIterator[tuple[str, Telling]]:
    handler = Telling()
    endpoint = Endpoint(handler, Limits(body_bytes=1000))
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "e.sock")
        listener.bind(path)
        listener.listen(16)
        await endpoint.start([listener])
        yield path, handler
        await endpoint.drain(0.0)


async def said(path: str, *pieces: bytes) -> list[bytes]:
    """All bodies that come back until the server has no more to say."""
    client = Client(*await asyncio.open_unix_connection(path))
    for piece in pieces:
        client.writer.write(piece)
        await client.writer.drain()
        await asyncio.sleep(0)
    client.writer.write_eof()
    bodies = []
    while True:
        try:
            bodies.append((await client.read()).body)
        except (asyncio.IncompleteReadError, ConnectionError):
            await client.close()
            return bodies


async def test_a_known_head_with_another_body_is_another_request(telling: tuple[str, Telling]) -> None:
    path, handler = telling
    client = Client(*await asyncio.open_unix_connection(path))
    for body in (b"one", b"two", b"six"):
        assert (await client.ask(HEAD + body)).body == b"POST /a " + body
    await client.close()
    assert [body for _, _, body in handler.seen] == [b"one", b"two", b"six"]


async def test_a_known_head_may_come_in_pieces_or_with_more_behind_it(telling: tuple[str, Telling]) -> None:
    path, _ = telling
    assert await said(path, HEAD + b"one") == [b"POST /a one"]
    assert await said(path, HEAD + b"one" + HEAD + b"two" + HEAD + b"six") == [
        b"POST /a one", b"POST /a two", b"POST /a six",
    ]  # fmt: skip
    assert await said(path, HEAD + b"o", b"ne" + HEAD[:9], HEAD[9:], b"two") == [b"POST /a one", b"POST /a two"]


async def test_of_two_heads_that_come_at_once_each_stays_itself(telling: tuple[str, Telling]) -> None:
    path, _ = telling
    other = HEAD.replace(b"/a", b"/b")
    for _ in range(2):
        assert await said(path, HEAD + b"one" + other + b"two") == [b"POST /a one", b"POST /b two"]
        assert await said(path, HEAD + b"one") == [b"POST /a one"]
        assert await said(path, other + b"two") == [b"POST /b two"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /a HTTP/1.1\nHost: x\n\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"\r\nGET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nX: y\r\n z\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nContent-Length: 34\r\n\r\nPOST /b HTTP/1.1\r\n\r\nGET / HTTP/1.1",
    ],
)
async def test_what_is_odd_is_answered_the_same_each_time(telling: tuple[str, Telling], raw: bytes) -> None:
    path, handler = telling
    first, seen = await said(path, raw), handler.seen.copy()
    for _ in range(2):
        handler.seen.clear()
        assert await said(path, raw) == first
        assert handler.seen == seen


def test_only_a_head_that_is_surely_whole_is_kept() -> None:
    heads = Heads()
    whole = b"GET / HTTP/1.1\r\nA: b\r\n\r\n"
    wrong = [
        (whole, Head(fields=2)),
        (whole.replace(b"\r\n", b"\n"), Head(fields=1)),
        (whole, Head(fields=1, keep_alive=False)),
        (whole, Head(fields=1, chunked=True)),
        (whole, Head(fields=1, expects=True)),
        (b"\r\n" + whole, Head(fields=1)),
    ]
    for raw, head in wrong:
        heads.keep(raw, head)
        assert heads.find(raw) is None
    heads.keep(whole, Head(fields=1))
    assert heads.find(whole) is not None


def test_the_oldest_heads_go_first() -> None:
    heads = Heads()
    raws = [b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(MAX_KEPT + 10)]
    for raw in raws:
        heads.keep(raw, Head())
    assert [heads.find(raw) is None for raw in raws] == [True] * 10 + [False] * MAX_KEPT


@given(st.lists(st.sampled_from([b"a", b"b", b"content-length", b"request-deadline-ms"]), max_size=4), st.binary())
@settings(max_examples=100, deadline=None)
def test_any_header_is_read_or_refused(names: list[bytes], value: bytes) -> None:
    head, status = Head(), 400
    try:
        for name in names:
            head.add(name, value)
    except Refused as refused:
        status = refused.status
    assert status == 400
    assert head.fields <= len(names)
