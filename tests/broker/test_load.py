"""Row 59 and 61 of the table of attacks: too much of something. The one that sends it may suffer, others may not."""

import asyncio
import contextlib
import time

import pytest

from cloud_hub.broker import MAX_QUEUED_BYTES
from modules.topics import all_down, down, up
from support.hostile import (
    REFUSED,
    Gone,
    connect,
    packet,
    publish,
    text,
    user_properties,
    varint,
)
from support.target import HUB, A, B, Target

MIB = 1024 * 1024
LARGE = 700
LARGE_BYTES = 256 * 1024


async def still_serves(target: Target) -> None:
    """A message of the hub reaches another device, and back."""
    async with target.client(HUB) as hub, target.client(B) as other:
        await hub.subscribe(up(B, "event"))
        await other.subscribe(all_down(B))
        await hub.publish(down(B, "ack"), b"there")
        assert (await other.receive()).payload == b"there"
        await other.publish(up(B, "event"), b"back")
        assert (await hub.receive()).payload == b"back"


async def test_a_message_over_the_limit_ends_only_its_sender_row59(target: Target) -> None:
    async with target.client(HUB) as hub, target.client(A) as attacker:
        await hub.subscribe(up(A, "sample"))
        with pytest.raises((Gone, AssertionError)):
            assert await attacker.publish(up(A, "sample"), bytes(2 * MIB)) < REFUSED
        await hub.ping()
        assert hub._messages == []
    await still_serves(target)


async def test_the_largest_message_of_the_protocol_passes_row59(target: Target) -> None:
    async with target.client(HUB) as hub, target.client(A) as device:
        await hub.subscribe(up(A, "sample"))
        assert await device.publish(up(A, "sample"), bytes(1_000_000)) < REFUSED
        assert len((await hub.receive()).payload) == 1_000_000


async def test_a_packet_that_claims_256_MB_is_cut_off_row59(target: Target) -> None:
    async with target.client(A) as attacker:
        await attacker.send(b"\x30" + varint(268_435_455) + text(up(A, "sample")))
        await still_serves(target)
        block, ended = bytes(MIB), False
        for _ in range(40):
            try:
                await attacker.send(block)
            except Gone:
                ended = True
                break
        assert ended or await attacker.closed()
    await still_serves(target)


async def test_64_thousand_user_properties_harm_nobody_row59(target: Target) -> None:
    async with target.client(A) as attacker:
        with contextlib.suppress(Gone):
            await attacker.publish(up(A, "event"), b"x", properties=user_properties(65_536))
    await still_serves(target)


async def test_10_thousand_subscriptions_harm_nobody_row59(target: Target) -> None:
    async with target.client(A) as attacker:
        try:
            for first in range(0, 10_000, 500):
                names = [f"mooring/1/{A}/down/{number}" for number in range(first, first + 500)]
                body = (
                    attacker.next_number().to_bytes(2, "big") + b"\0" + b"".join(text(name) + b"\1" for name in names)
                )
                await attacker.send(packet(0x82, body))
            await attacker.ping()
        except Gone:
            pass
        await still_serves(target)
    await still_serves(target)


async def test_the_same_number_again_and_again_at_quality_2_harms_nobody_row59(target: Target) -> None:
    async with target.client(HUB) as hub, target.client(A) as attacker:
        await hub.subscribe(up(A, "event"))
        try:
            for _ in range(200):
                await attacker.send(publish(up(A, "event"), b"twice", 7, qos=2))
            await attacker.ping()
        except Gone:
            pass
        await hub.ping()
        assert len(hub._messages) <= 1, "one number, one message"
    await still_serves(target)


async def test_a_client_that_never_acknowledges_holds_up_nobody_and_keeps_a_bounded_queue_row59(target: Target) -> None:
    async with target.client(HUB) as hub, target.client(A, clean=True, keep_s=60) as deaf:
        await deaf.subscribe(all_down(A))
        for _ in range(LARGE):
            await hub.publish(down(A, "ack"), bytes(LARGE_BYTES))
        await still_serves(target)
    async with target.client(HUB) as hub, target.client(A, clean=False) as deaf:
        count, limit = 0, time.monotonic() + 30
        while time.monotonic() < limit:
            try:
                async with asyncio.timeout(1.0):
                    message = await deaf.receive()
            except TimeoutError:
                break
            await deaf.acknowledge(message)
            count += 1
    assert 0 < count * LARGE_BYTES <= 2 * MAX_QUEUED_BYTES < LARGE * LARGE_BYTES, "what waits for one client is bounded"


async def test_a_flood_at_quality_0_keeps_nobody_from_talking_row59(target: Target) -> None:
    async with target.client(A) as attacker:
        one = publish(up(A, "event"), bytes(200), 0, qos=0)

        async def flood() -> None:
            while True:
                await attacker.send(one * 200)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        try:
            for _ in range(5):
                await still_serves(target)
        finally:
            flooding.cancel()
            await asyncio.wait([flooding])


async def test_a_storm_of_connections_leaves_the_broker_up_row61(target: Target) -> None:
    async def once() -> bool:
        try:
            async with target.client(A) as client:
                await client.ping()
        except (Gone, TimeoutError):
            return False  # the next one with the same certificate took its place
        return True

    results = await asyncio.gather(*(once() for _ in range(60)))
    assert any(results)
    await still_serves(target)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="row59-another-protocol"),
        pytest.param(b"\x10\xff\xff\xff\xff\xff", id="row59-a-length-of-five-bytes"),
        pytest.param(publish(up(A, "event"), b"x", 1), id="row59-speaking-before-connect"),
        pytest.param(connect(A) + connect(A), id="row59-connect-twice"),
        pytest.param(connect(A) + publish("mooring/1/+/up/event", b"x", 1), id="row59-a-wildcard-to-publish-to"),
        pytest.param(connect(A) + packet(0x82, b"\0\1\0"), id="row59-no-filter-to-subscribe-to"),
        pytest.param(connect(A) + publish(up(A, "event") + "\0", b"x", 1), id="row59-a-NUL-in-a-topic"),
        pytest.param(connect(A) + b"\xf0\0", id="row59-an-auth-nobody-asked-for"),
    ],
)
async def test_what_is_not_the_protocol_ends_only_its_sender(target: Target, garbage: bytes) -> None:
    async with target.socket(A) as attacker:
        await attacker.send(garbage)
        assert await attacker.closed()
    await still_serves(target)
