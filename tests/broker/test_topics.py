"""Row 51 to 57 of the table of attacks: a device with a good certificate reaches for what is another's."""

import asyncio
import contextlib

import pytest

from modules.topics import all_down, down, up
from support.hostile import NOT_AUTHORISED, REFUSED, Gone, Hostile, Will
from support.target import HUB, A, B, Target

SECRET, MARK = b"for dev-b only", b"mark"
EVERYTHING = "mooring/1/#"


async def nothing_arrived(hub: Hostile, attacker: Hostile) -> None:
    """What the hub hears next is what the attacker may say."""
    await attacker.publish(up(A, "event"), MARK)
    heard = await hub.received_until(MARK)
    assert heard == []


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param(up(B, "window"), id="row51-as-another-device"),
        pytest.param(up(B, "state"), id="row51-another-device-s-report"),
        pytest.param(down(A, "desired"), id="row51-its-own-down"),
        pytest.param(down(B, "desired"), id="row51-another-s-down"),
        pytest.param("$SYS/broker/version", id="row51-SYS"),
        pytest.param("$CONTROL/dynamic-security/v1", id="row51-CONTROL"),
        pytest.param(f"mooring/1/{A}", id="row51-above-its-own"),
        pytest.param(f"mooring/2/{A}/up/window", id="row51-another-version"),
        pytest.param(f"mooring/1/{A}/sideways/x", id="row51-a-channel-that-is-none"),
        pytest.param(f"x/mooring/1/{A}/up/window", id="row51-its-own-below-another-root"),
        pytest.param("mooring/1//up/window", id="row51-no-device"),
    ],
)
@pytest.mark.parametrize("retain", [False, True], ids=["once", "retained"])
async def test_a_device_cannot_publish_where_it_has_no_business(target: Target, topic: str, retain: bool) -> None:
    async with target.client(HUB) as hub, target.client(A) as attacker:
        await hub.subscribe(EVERYTHING)
        with contextlib.suppress(Gone):  # thrown out, which is as good a no
            assert await attacker.publish(topic, b"forged", retain=retain) >= REFUSED
        async with target.client(A) as attacker:
            await nothing_arrived(hub, attacker)
    async with target.client(HUB) as late:
        await late.subscribe(EVERYTHING)
        await late.publish(down(B, "data"), MARK, qos=0)
        assert [message.topic for message in await late.received_until(MARK) if message.payload == b"forged"] == []


async def test_a_refused_publish_is_told_and_not_swallowed_row51(target: Target) -> None:
    async with target.client(A) as attacker:
        try:
            reason = f"0x{await attacker.publish(up(B, 'window')):02x}"
        except Gone as error:
            reason = str(error)
        assert f"0x{NOT_AUTHORISED:02x}" in reason


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param("#", id="row52-all"),
        pytest.param("mooring/#", id="row52-all-of-ours"),
        pytest.param("mooring/1/+/down/#", id="row52-down-of-everybody"),
        pytest.param("mooring/1/+/up/#", id="row52-up-of-everybody"),
        pytest.param("+/+/+/+/+", id="row52-by-depth"),
        pytest.param(all_down(B), id="row52-down-of-another"),
        pytest.param(f"mooring/1/{B}/up/#", id="row52-up-of-another"),
        pytest.param(f"$share/g/{all_down(B)}", id="row52-a-share-of-another"),
        pytest.param("$share/g/#", id="row52-a-share-of-all"),
        pytest.param("$SYS/#", id="row52-SYS"),
        pytest.param("$CONTROL/#", id="row52-CONTROL"),
    ],
)
async def test_a_device_hears_nothing_of_others_whatever_it_subscribes_to(target: Target, wanted: str) -> None:
    async with target.client(HUB) as hub, target.client(A) as attacker, target.client(B) as victim:
        await hub.publish(down(B, "desired"), SECRET, retain=True)
        await victim.subscribe(all_down(B))
        try:
            await attacker.subscribe(wanted)
        except Gone:
            return
        await attacker.subscribe(down(A, "data"))
        await hub.publish(down(B, "ack"), SECRET)
        await victim.publish(up(B, "sample"), SECRET)
        await hub.publish(down(A, "data"), MARK)
        heard = await attacker.received_until(MARK)
        assert [message.topic for message in heard] == []
        # And the share did not take away what is the victim's.
        assert {(await victim.receive()).topic for _ in range(2)} == {down(B, "desired"), down(B, "ack")}
        await hub.publish(down(B, "desired"), b"", retain=True)


async def test_a_subscription_made_offline_by_a_session_stays_without_foreign_messages_row57(target: Target) -> None:
    async with target.client(A, clean=True, keep_s=60) as attacker:
        try:
            await attacker.subscribe("mooring/1/+/down/#")
        except Gone:
            return
    async with target.client(HUB) as hub:
        await hub.publish(down(B, "ack"), SECRET)
        async with target.client(A, clean=False) as attacker:
            await hub.publish(down(A, "data"), MARK)
            assert [message.topic for message in await attacker.received_until(MARK)] == []


@pytest.mark.parametrize("clean", [True, False], ids=["row53-clean", "row53-persistent"])
async def test_another_device_s_client_id_takes_nothing_over(target: Target, clean: bool) -> None:
    async with target.client(HUB) as hub, target.client(B, clean=True, keep_s=60) as victim:
        await victim.subscribe(all_down(B))
        try:
            async with target.client(A, client_id=B, clean=clean) as attacker:
                await victim.ping()
                await hub.publish(down(B, "ack"), SECRET)
                await attacker.ping()
                assert attacker._messages == []
        except Gone:
            await hub.publish(down(B, "ack"), SECRET)
        assert (await victim.receive()).payload == SECRET


async def test_what_waits_for_a_device_cannot_be_thrown_away_by_another_row53(target: Target) -> None:
    async with target.client(B, clean=True, keep_s=60) as victim:
        await victim.subscribe(all_down(B))
    async with target.client(HUB) as hub:
        await hub.publish(down(B, "ack"), SECRET)
        try:
            async with target.client(A, client_id=B, clean=True) as attacker:
                await attacker.ping()
        except Gone:
            pass
        async with target.client(B, clean=False) as victim:
            assert (await victim.receive()).payload == SECRET


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param(up(B, "state"), id="row55-as-another-device"),
        pytest.param(down(B, "desired"), id="row55-to-another-s-down"),
        pytest.param(down(A, "desired"), id="row55-to-its-own-down"),
        pytest.param("$SYS/broker/version", id="row55-to-SYS"),
    ],
)
@pytest.mark.parametrize("retain", [False, True], ids=["once", "retained"])
async def test_a_will_goes_nowhere_that_its_device_may_not(target: Target, topic: str, retain: bool) -> None:
    async with target.client(HUB) as hub:
        await hub.subscribe(EVERYTHING)
        for will in (Will(topic, b"forged", retain), Will(up(A, "event"), MARK)):
            try:
                async with target.client(A, will=will) as attacker:
                    attacker.drop()
            except Gone:
                continue  # not even let in with such a will
        assert await hub.received_until(MARK) == []


@pytest.mark.parametrize("name", [pytest.param("+", id="row54-plus"), pytest.param("#", id="row54-hash")])
async def test_a_name_that_is_a_wildcard_has_no_rights_at_all(target: Target, name: str) -> None:
    """The CA never issues one (tests of the CA); were it to, the broker gives it nothing."""
    async with target.client(HUB) as hub:
        await hub.subscribe(EVERYTHING)
        try:
            async with target.client(name, client_id="x") as attacker:
                assert await attacker.publish(up(B, "window"), b"forged") >= REFUSED
        except Gone:
            pass
        async with target.client(A) as honest:
            await nothing_arrived(hub, honest)


async def test_two_with_one_certificate_are_one_at_a_time_row53(target: Target) -> None:
    """A cloned device throws the original out, again and again: visible, which two quiet sessions are not."""
    async with target.client(A) as first, target.client(A) as second:
        await second.ping()
        async with asyncio.timeout(15):
            assert await first.closed()
