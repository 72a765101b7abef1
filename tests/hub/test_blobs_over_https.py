"""Files over HTTP as devices fetch them: by right, in ranges, kept by caches; slow readers keep nobody waiting."""

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cloud_hub.api.app import application
from cloud_hub.api.blobs import TRANSFERS, Transfers, stretch
from cloud_hub.api.gate import Gate
from cloud_hub.api.table import EVERY_ROUTE
from cloud_hub.errors import HubError
from cloud_hub.roles import Role
from cloud_hub.transfer_settings import TransferSettings
from support.fleets import World, open_world
from support.waiting import until

DATA = bytes(range(256)) * 4096


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def stored(world: World, data: bytes = DATA) -> tuple[str, str]:
    """Digest, and the path that a device gets."""
    digest = await world.rooms.blobs.put(data)
    right = world.rooms.capabilities.give("url", digest, int(world.clock()) + 600)
    return digest, f"/api/v1/blobs/{digest}?right={right}"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, len(DATA)),
        ("bytes=100-299", 100, 300),
        (f"bytes={len(DATA) - 1}-", len(DATA) - 1, len(DATA)),
        (f"bytes=5-{10**17}", 5, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes=-{10**17}", 0, len(DATA)),
    ],
)
async def test_a_range_is_answered_with_exactly_its_bytes(world: World, asked: str, start: int, end: int) -> None:
    digest, path = await stored(world)
    async with world.client.get(path, headers={"Range": asked}) as response:
        assert await response.read() == DATA[start:end]
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
        assert response.headers["ETag"] == f'"{digest}"'


@pytest.mark.parametrize("asked", [None, "bytes=2-1", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=a-b", "nonsense"])
async def test_without_a_range_that_counts_the_whole_file_comes_and_may_be_kept(
    world: World, asked: str | None
) -> None:
    _, path = await stored(world)
    async with world.client.get(path, headers={"Range": asked} if asked else {}) as response:
        assert await response.read() == DATA
        assert response.status == 200
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=99999999999-", "bytes=-0"])
async def test_a_range_beyond_the_end_is_refused_with_the_size(world: World, asked: str) -> None:
    _, path = await stored(world)
    async with world.client.get(path, headers={"Range": asked}) as response:
        assert response.status == 416
        assert response.headers["Content-Range"] == f"bytes */{len(DATA)}"


async def test_a_range_of_another_file_than_the_one_begun_becomes_the_whole_file(world: World) -> None:
    digest, path = await stored(world)
    for tag, status in ((f'"{digest}"', 206), ('"other"', 200), (f'W/"{digest}"', 200)):
        async with world.client.get(path, headers={"Range": "bytes=0-9", "If-Range": tag}) as response:
            assert response.status == status


async def test_whoever_holds_the_file_already_gets_no_bytes(world: World) -> None:
    digest, path = await stored(world)
    async with world.client.get(path, headers={"If-None-Match": f'"{digest}"'}) as response:
        assert (response.status, await response.read()) == (304, b"")


async def test_head_gives_the_size_and_no_bytes(world: World) -> None:
    digest, path = await stored(world)
    async with world.client.head(path) as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == str(len(DATA))
        assert response.headers["ETag"] == f'"{digest}"'
        assert await response.read() == b""


async def test_a_right_opens_its_own_file_only_and_not_after_its_end(world: World) -> None:
    digest, path = await stored(world)
    other, _ = await stored(world, b"another file")
    right = path.partition("=")[2]
    forged = await world.ask("", "GET", f"/blobs/{digest}?right={right[:-1]}x")
    elsewhere = await world.ask("", "GET", f"/blobs/{other}?right={right}")
    twice = await world.ask("", "GET", f"/blobs/{other}?right={right}&right={right}")
    grant = world.rooms.capabilities.give("grant", digest, int(world.clock()) + 600)
    as_url = await world.ask("", "GET", f"/blobs/{digest}?right={grant}")
    devices = await world.ask("", "GET", f"/devices?right={right}")
    world.clock.advance(601)
    late = await world.ask("", "GET", f"/blobs/{digest}?right={right}")
    refused = [(one.status, one.key) for one in (forged, elsewhere, twice, as_url, late)]
    assert refused == [(403, "right-invalid")] * 5
    assert devices.status == 401


async def test_operators_still_download_by_their_role_and_strangers_do_not(world: World) -> None:
    digest, _ = await stored(world)
    viewer = await world.token(Role.VIEWER)
    downloaded = await world.ask(viewer, "GET", f"/blobs/{digest}")
    assert downloaded.status == 200
    assert downloaded.headers["Cache-Control"].startswith("private"), "no shared cache may give it to others"
    assert (await world.ask("", "GET", f"/blobs/{digest}")).status == 401
    assert (await world.ask("", "GET", f"/blobs/{digest}?right=")).status == 403


async def test_a_right_to_a_file_that_is_gone_finds_nothing(world: World) -> None:
    digest = "0" * 64
    right = world.rooms.capabilities.give("url", digest, int(world.clock()) + 60)
    assert (await world.ask("", "GET", f"/blobs/{digest}?right={right}")).status == 404


async def test_transfers_are_bounded_in_all_and_for_each_address() -> None:
    transfers, bounds = Transfers(), TransferSettings(transfers=3, transfers_per_address=2)

    def one(sender: str) -> AbstractContextManager[None]:
        return transfers.one(sender, bounds)

    with one("a"), one("a"):
        with pytest.raises(HubError, match="2 to one address"), one("a"):
            pass
        with one("b"), pytest.raises(HubError, match="at most 3 transfers"), one("c"):
            pass
        with one("c"):
            pass
    assert transfers.under_way.total() == 0
    assert not transfers.under_way, "addresses that are done are forgotten"


async def test_a_reader_that_takes_nothing_is_let_go_and_its_place_is_free(world: World) -> None:
    """The client's receive buffer is small and it never reads: the hub's writes stand still until the deadline."""
    settings = TransferSettings(write_s=0.3, transfers=1, transfers_per_address=1)
    rooms = dataclasses.replace(world.rooms, config=msgspec.structs.replace(world.rooms.config, transfer=settings))
    gate = Gate(world.rooms.store, world.rooms.events, world.clock, allows=world.rooms.capabilities.allows)
    app = application(rooms, EVERY_ROUTE, gate)
    _, path = await stored(world, b"\0" * 32 * 1024 * 1024)
    async with TestClient(TestServer(app)) as client:
        sock = await asyncio.to_thread(deaf, client, path)
        try:
            await until(lambda: app[TRANSFERS].under_way.total() == 1, "the transfer to begin")
            async with client.get(path, headers={"Range": "bytes=0-0"}) as response:
                assert response.status == 429
                assert response.headers["Retry-After"] == "2"
            await until(lambda: app[TRANSFERS].under_way.total() == 0, "the slow reader to be let go")
            async with client.get(path, headers={"Range": "bytes=0-0"}) as response:
                assert response.status == 206
        finally:
            sock.close()


def deaf(client: TestClient[web.Request, web.Application], path: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(20)
    assert client.server.port is not None
    sock.connect(("127.0.0.1", client.server.port))
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def test_a_stretch_of_an_empty_file() -> None:
    assert stretch(None, None, '"x"', 0).whole
    with pytest.raises(HubError, match="begins below 0"):
        stretch("bytes=0-", None, '"x"', 0)
