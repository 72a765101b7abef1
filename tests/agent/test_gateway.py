"""A gateway and its neighbours: once over the air for all, nothing for strangers, and no trust in what it gives."""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec
import pytest

from agent.config import GatewaySettings, Place, StatePaths, parse_place
from agent.errors import LinkDown, LinkError, Refused
from agent.neighbours import keep_device_ca, neighbour_tls
from agent.transfer import gateway_store, offers, window
from agent.transfer.fetch import Fetcher
from agent.transfer.gateway_source import GatewaySource
from agent.transfer.gateway_store import OwnSource
from agent.transfer.offers import Offering
from agent.transfer.source import MqttSource
from support.certificates import make_ca, make_client, make_server
from support.gateways import LIMITS, Rights, gateway, neighbour, nothing, state_of
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.repository import make_entry
from support.waiting import until

DATA = random.Random(11).randbytes(200_001)
ENTRY = make_entry("model.onnx", DATA, 20_000)
FILE = ENTRY.sha256
OTHER = random.Random(12).randbytes(100_000)
PATIENT = msgspec.structs.replace(LIMITS, chunk_timeout_s=30.0)
IMPATIENT = msgspec.structs.replace(LIMITS, chunk_timeout_s=1.0)
OTHER_ENTRY = make_entry("other.onnx", OTHER, 20_000)


@pytest.fixture
async def rights(broker: Mosquitto) -> AsyncIterator[Rights]:
    async with FakeHub(broker, {("blob", FILE): DATA, ("blob", OTHER_ENTRY.sha256): OTHER}) as hub:
        yield Rights(hub)


async def whole(source: GatewaySource, sha256: str, size: int, step: int = 100_000) -> bytes:
    return b"".join([await source.read(sha256, at, step, 20) for at in range(0, size, step)])


async def test_ten_devices_download_a_file_once_over_the_air(
    broker: Mosquitto, rights: Rights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine neighbours and the gateway's own update, all at once; each checks and keeps the file for itself."""
    monkeypatch.setattr(window, "RTO_LEAST_S", 30.0)  # no block is asked for again because a machine is slow
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(gateway(broker, tmp_path, limits=PATIENT))
        fetchers = []
        for number in range(9):
            link, offering, source = await stack.enter_async_context(
                neighbour(broker, tmp_path, f"cam-{number}", site.place)
            )
            staging = tmp_path / f"cam-{number}" / "staging"
            fetchers.append(Fetcher(link, staging, PATIENT, nothing, sources=[source], offering=offering))
        own = OwnSource(site.store, Offering(site.link))
        fetchers.append(Fetcher(site.link, site.paths.staging, PATIENT, nothing, sources=[own]))
        for fetcher in fetchers:
            stack.callback(fetcher.close)
        found = await asyncio.gather(*(fetcher.fetch([ENTRY]) for fetcher in fetchers))
        assert [one[FILE].read_bytes() == DATA for one in found] == [True] * 10
        assert [fetcher.traffic.totals() for fetcher in fetchers] == [{"gateway": len(DATA)}] * 10
    assert rights.sent[FILE] <= len(DATA) + 2, "the file, and a byte for each proof"


async def test_what_was_fetched_is_kept_over_a_restart_and_the_grant_is_still_asked_about(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    for _ in range(2):
        async with (
            gateway(broker, tmp_path) as site,
            neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source),
        ):
            assert await whole(source, FILE, len(DATA)) == DATA
            await until((site.paths.gateway / FILE).exists, "the file to be whole")
    assert rights.sent[FILE] == len(DATA) + 2


async def test_a_part_is_gone_after_a_restart_and_so_is_whatever_else_lies_there(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        await source.read(FILE, 0, 10, 20)
        (site.paths.gateway / "..part").write_bytes(b"x")
        (site.paths.gateway / f"{FILE}.part.more").write_bytes(b"x")
    async with gateway(broker, tmp_path) as site:
        assert list(site.paths.gateway.iterdir()) == []


async def test_a_file_that_the_gateway_runs_itself_is_served_from_its_slot(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    slot = tmp_path / "slot"
    slot.write_bytes(DATA)
    async with (
        gateway(broker, tmp_path, find=lambda digest: slot if digest == FILE else None) as site,
        neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source),
    ):
        assert await whole(source, FILE, len(DATA)) == DATA
    assert rights.sent[FILE] == 1, "one byte, which proves the grant"


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (16_383, 2), (16_384, 16_384), (len(DATA) - 1, 500), (99, 200_000)]
)
async def test_any_range_comes_as_asked_for(
    broker: Mosquitto, rights: Rights, tmp_path: Path, offset: int, length: int
) -> None:
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        assert await source.read(FILE, offset, length, 20) == DATA[offset : offset + length]
        assert await source.read(FILE, len(DATA), length, 20) == b""


# Who may have what


@pytest.mark.parametrize("forged", ["", "1.forged", "2." + FILE[:16], "1." + OTHER_ENTRY.sha256[:16]])
async def test_a_grant_that_the_hub_does_not_know_opens_nothing_also_of_what_is_here(
    broker: Mosquitto, rights: Rights, tmp_path: Path, forged: str
) -> None:
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        assert await whole(source, FILE, len(DATA)) == DATA
        with pytest.raises(Refused) as caught:
            await site.store.read(FILE, 0, 10, forged)
        assert caught.value.key == "not-allowed"


async def test_a_grant_that_has_ended_is_asked_for_anew_by_the_neighbour(
    broker: Mosquitto, rights: Rights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "AGAIN_S", 0.0)
    monkeypatch.setattr(gateway_store, "PROVEN_S", 0.0)
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        assert await source.read(FILE, 0, 10, 20) == DATA[:10]
        rights.renew()
        assert await source.read(FILE, 100_000, 10, 20) == DATA[100_000:100_010]
        assert len(rights.hub.asked_offers) == 2
        rights.good.clear()
        with pytest.raises(Refused) as caught:
            await source.read(FILE, 0, 10, 20)
        assert caught.value.key == "not-allowed"


async def test_a_device_that_is_offered_nothing_asks_no_gateway(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        with pytest.raises(Refused, match="gives no grant"):
            await source.read("f" * 64, 0, 10, 20)
        assert rights.sent == {}


def ask_raw(tls: ssl.SSLContext, port: int, request: bytes) -> bytes:
    """What a program of somebody's own gets. Blocking."""
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        tls.wrap_socket(plain, server_hostname="x") as sock,
    ):
        sock.sendall(request)
        got = b""
        while piece := sock.recv(65_536):
            got += piece
        return got


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.mark.parametrize("who", ["nobody", "another fleet", "the hub's servers", "self-signed"])
async def test_a_stranger_is_refused_before_a_byte_is_read(
    broker: Mosquitto, rights: Rights, tmp_path: Path, who: str
) -> None:
    tls = unverified()
    if who != "nobody":
        ca = broker.server_ca if who == "the hub's servers" else make_ca("another fleet")
        pair = ca if who == "self-signed" else make_client(ca, "cam-1")
        tls.load_cert_chain(*pair.write(tmp_path / "stranger", "stranger"))
    async with gateway(broker, tmp_path) as site:
        request = f"GET /blobs/{FILE}/0-10/1.{FILE[:16]} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()
        got = b""
        with suppress(OSError):  # an alert, or just the end
            got = await asyncio.to_thread(ask_raw, tls, site.gateway.port, request)
    assert got == b""
    assert rights.sent == {}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_an_old_tls_is_refused(
    broker: Mosquitto, rights: Rights, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    tls = neighbour_tls(state_of(broker, tmp_path, "cam-1"))
    tls.minimum_version = tls.maximum_version = version
    async with gateway(broker, tmp_path) as site:
        with pytest.raises(OSError, match=r"(?i)alert|reset|eof"):
            await asyncio.to_thread(ask_raw, tls, site.gateway.port, b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /blobs/../../etc/passwd/0-10/x", b"404"),
        (f"GET /blobs/{FILE}/../{FILE}/0-10/x", b"404"),
        (f"GET /blobs/{FILE.upper()}/0-10/x", b"404"),
        (f"GET /blobs/{FILE}.part/0-10/x", b"404"),
        ("GET /blobs/%2e%2e/0-10/x", b"404"),
        (f"GET /blobs/{FILE}/0-99999999/x", b"404"),
        (f"GET /blobs/{FILE}/0-0/x", b"404"),
        (f"GET /blobs/{FILE}/-1-10/x", b"404"),
        (f"GET /blobs/{FILE}/0-10/{'x' * 100}", b"404"),
        (f"GET /blobs/{FILE}/0-10/x", b"403"),
        (f"GET /blobs/{FILE}/0-10/", b"403"),
        (f"DELETE /blobs/{FILE}/0-10/x", b"405"),
        (f"GET /{'x' * 10_000}", b"431"),
        ("nonsense", b"400"),
    ],
)
async def test_requests_with_tricks_in_them_get_nothing(
    broker: Mosquitto, rights: Rights, tmp_path: Path, request_line: str, status: bytes
) -> None:
    tls = neighbour_tls(state_of(broker, tmp_path, "cam-1"))
    async with gateway(broker, tmp_path) as site:
        request = f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        got = await asyncio.to_thread(ask_raw, tls, site.gateway.port, request)
        assert got.split()[1] == status, got


# Gateways that are not what they should be


@pytest.mark.parametrize(
    "who", ["the hub's servers", "another fleet", "a server of the fleet's authority", "the hub's client"]
)
async def test_a_gateway_that_is_no_device_of_the_fleet_is_asked_nothing(
    broker: Mosquitto, rights: Rights, tmp_path: Path, who: str
) -> None:
    """It gets a neighbour's certificate as any peer does, and no request: no digest, no grant."""
    heard = bytearray()
    pair = {
        "the hub's servers": lambda: make_server(broker.server_ca, "localhost"),
        "another fleet": lambda: make_client(make_ca("another fleet"), "box-1"),
        "a server of the fleet's authority": lambda: make_server(broker.device_ca, "box-1"),
        "the hub's client": lambda: make_client(broker.device_ca, "_hub"),
    }[who]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.write(tmp_path / "impostor", "impostor"))

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            heard.extend(await reader.read(100))
        writer.transport.abort()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    try:
        place = Place("127.0.0.1", server.sockets[0].getsockname()[1])
        async with neighbour(broker, tmp_path, "cam-1", place) as (_, _, source):
            with pytest.raises(LinkError, match="not a device of this fleet") as caught:
                await source.read(FILE, 0, 10, 20)
            assert caught.value.key == "bad-certificate"
    finally:
        server.close()
        await server.wait_closed()
    assert heard == b""


async def test_a_gateway_may_be_asked_to_be_one_device_and_no_other(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with gateway(broker, tmp_path) as site:
        for device, good in (("box-1", True), ("cam-9", False)):
            place = Place(site.place.host, site.place.port, device)
            async with neighbour(broker, tmp_path, f"cam-{good}".lower(), place) as (_, _, source):
                if good:
                    assert await source.read(FILE, 0, 10, 20) == DATA[:10]
                else:
                    with pytest.raises(LinkError, match="expected the device cam-9, got box-1"):
                        await source.read(FILE, 0, 10, 20)


async def test_a_gateway_that_lies_costs_its_bytes_and_the_operator_hears_of_it(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    """What the gateway gets is falsified; what the device gets from the hub itself is not."""
    told: list[tuple[str, str]] = []
    rights.falsify = True
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1") as (link, offering, _):
        source = GatewaySource(
            [site.place],
            state_of(broker, tmp_path, "cam-1"),
            offering,
            lambda level, key, *_: told.append((level, key)),
        )
        staging = tmp_path / "cam-1" / "staging"
        fetcher = Fetcher(link, staging, LIMITS, nothing, sources=[source, MqttSource(link)], offering=offering)
        try:
            found = await fetcher.fetch([ENTRY])
            assert found[FILE].read_bytes() == DATA
        finally:
            fetcher.close()
            source.close()
        assert fetcher.traffic.totals()["mqtt"] > 0
        assert fetcher.traffic.totals()["wasted"] > 0
    assert ("warning", "gateway-wrong") in told
    assert not (site.paths.gateway / FILE).exists()


async def test_bytes_that_are_not_the_file_are_thrown_away_once_all_are_here(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        rights.falsify = True
        with suppress(Refused):  # it may be gone before it is read
            await source.read(FILE, 0, len(DATA), 20)
        await until(lambda: list(site.paths.gateway.iterdir()) == [], "the bytes to be thrown away")
        rights.falsify = False
        assert await whole(source, FILE, len(DATA)) == DATA


async def test_a_gateway_that_dies_in_the_middle_is_replaced_by_the_hub(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        dying = await stack.enter_async_context(AsyncExitStack())
        site = await dying.enter_async_context(gateway(broker, tmp_path))
        link, offering, source = await stack.enter_async_context(neighbour(broker, tmp_path, "cam-1", site.place))
        begun = asyncio.Event()
        staging = tmp_path / "cam-1" / "staging"
        fetcher = Fetcher(link, staging, LIMITS, nothing, sources=[source, MqttSource(link)], offering=offering)
        stack.callback(fetcher.close)
        rights.hold_after = 60_000
        fetching = asyncio.create_task(fetcher.fetch([ENTRY], lambda done, _: begun.set() if done else None))
        await asyncio.wait_for(begun.wait(), 20)
        await dying.aclose()
        rights.hold_after = 0
        found = await asyncio.wait_for(fetching, 40)
        assert found[FILE].read_bytes() == DATA
        totals = fetcher.traffic.totals()
        assert totals["gateway"] > 0
        assert totals["mqtt"] > 0


async def test_the_next_gateway_is_asked_when_the_first_is_away(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with gateway(broker, tmp_path) as site:
        nobody = Place("127.0.0.1", 1)
        async with neighbour(broker, tmp_path, "cam-1", nobody, site.place) as (_, _, source):
            with pytest.raises(LinkDown):
                await source.read(FILE, 0, 10, 20)
            assert await source.read(FILE, 0, 10, 20) == DATA[:10]


# Bounds


async def test_the_cache_is_bounded_and_what_was_unused_for_the_longest_goes_first(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    settings = GatewaySettings(cache_bytes=len(DATA) + 1000)
    async with (
        gateway(broker, tmp_path, settings) as site,
        neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source),
    ):
        assert await whole(source, OTHER_ENTRY.sha256, len(OTHER)) == OTHER
        assert await whole(source, FILE, len(DATA)) == DATA
        assert site.cache.used_bytes <= settings.cache_bytes
        await until(lambda: [path.name for path in site.paths.gateway.iterdir()] == [FILE], "the last file alone")


async def test_a_file_larger_than_the_cache_is_left_to_the_hub(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with (
        gateway(broker, tmp_path, GatewaySettings(cache_bytes=1000)) as site,
        neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source),
    ):
        with pytest.raises(Refused) as caught:
            await source.read(FILE, 0, 10, 20)
        assert caught.value.key == "not-found"
    assert rights.sent[FILE] == 1


async def test_more_requests_than_it_can_answer_are_told_to_come_again(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with (
        gateway(broker, tmp_path, GatewaySettings(requests=1), IMPATIENT) as site,
        neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source),
    ):
        rights.hold_after = 1
        first = asyncio.create_task(source.read(FILE, 0, 10, 30))
        await until(lambda: bool(rights.held), "the first to wait for the hub")
        with pytest.raises(Refused) as caught:
            await source.read(FILE, 150_000, 10, 20)
        assert caught.value.key == "busy"
        rights.hold_after = 0  # the hub answers what is asked again
        assert await first == DATA[:10]


async def test_a_neighbour_that_leaves_does_not_take_the_others_bytes_with_it(
    broker: Mosquitto, rights: Rights, tmp_path: Path
) -> None:
    async with (
        gateway(broker, tmp_path, limits=IMPATIENT) as site,
        neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source),
    ):
        rights.hold_after = 1
        first = asyncio.create_task(source.read(FILE, 0, 10, 30))
        await until(lambda: bool(rights.held), "the first to wait for the hub")
        second = asyncio.create_task(source.read(FILE, 5, 10, 30))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        rights.hold_after = 0  # the hub answers what is asked again
        assert await second == DATA[5:15]


# Who knows whom


def test_the_authorities_of_the_fleet_are_kept_when_they_are_any(tmp_path: Path) -> None:
    """Not the hub's own, not a device's certificate, not nothing: then what is known stays."""
    server, fleet, other = make_ca("server CA"), make_ca("device CA"), make_ca("next device CA")
    paths = StatePaths(tmp_path)
    paths.identity.mkdir()
    paths.server_ca.write_text(server.pem)
    for pem in ("", "nonsense", server.pem, fleet.pem + server.pem, make_client(fleet, "cam-1").pem, "x" * 100_000):
        keep_device_ca(paths, pem)
        assert not paths.device_ca.exists()
    keep_device_ca(paths, fleet.pem)
    keep_device_ca(paths, "")
    assert paths.device_ca.read_text() == fleet.pem
    keep_device_ca(paths, other.pem + fleet.pem)
    assert paths.device_ca.read_text() == other.pem + fleet.pem


async def test_a_gateway_of_a_device_that_has_not_heard_of_its_fleet_waits_for_the_renewal(
    broker: Mosquitto, rights: Rights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.transfer.gateway.LOOK_S", 0.05)
    paths = state_of(broker, tmp_path, "box-1")
    known = paths.device_ca.read_text()
    paths.device_ca.unlink()
    renewed = asyncio.get_running_loop().call_later(0.3, keep_device_ca, paths, known)
    async with gateway(broker, tmp_path) as site, neighbour(broker, tmp_path, "cam-1", site.place) as (_, _, source):
        assert renewed.when() <= asyncio.get_running_loop().time()
        assert await source.read(FILE, 0, 10, 20) == DATA[:10]


@pytest.mark.parametrize(
    "text", ["", "box", "box:0", "box:65536", ":80", "a b:80", "Box@host", "B!@host:80", "host:80/x"]
)
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_place(text)


def test_places_are_read() -> None:
    assert parse_place("10.0.0.5:8444") == Place("10.0.0.5", 8444)
    assert parse_place("box-1@[fe80::1]:8444") == Place("fe80::1", 8444, "box-1")
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        GatewaySettings("box-1@host:80")
