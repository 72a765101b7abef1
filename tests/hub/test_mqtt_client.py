"""The hub's MQTT client against a broker that says what a test has it say: receipts, refusals, silence, garbage."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import mqtt5
import pytest

from cloud_hub.mqtt.client import Client, ConnectionEnded
from support.certificates import make_ca, make_server
from support.waiting import until

DEADLINE_S = 20.0
Said = Callable[["Party", mqtt5.Packet], None]


class Party:
    """The other end of one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.heard: list[mqtt5.Packet] = []

    def say(self, *packets: mqtt5.Packet) -> None:
        self.writer.write(b"".join(packet.write() for packet in packets))

    def published(self) -> list[mqtt5.PublishPacket]:
        return [packet for packet in self.heard if isinstance(packet, mqtt5.PublishPacket)]


class FakeBroker:
    """`answer` is called with each packet; as it is made it lets in, and receipts everything."""

    def __init__(self) -> None:
        self.answer: Said = let_in_and_receipt
        self.parties: list[Party] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        party = Party(writer)
        self.parties.append(party)
        unread = b""
        try:
            while data := await reader.read(65536):
                unread += data
                while unread:
                    try:
                        packet, size = mqtt5.read(memoryview(unread))
                    except IndexError:
                        break
                    unread = unread[size:]
                    party.heard.append(packet)
                    self.answer(party, packet)
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()


def let_in_and_receipt(party: Party, packet: mqtt5.Packet) -> None:
    let_in(party, packet)
    if isinstance(packet, mqtt5.PublishPacket) and packet.packet_id is not None:
        party.say(mqtt5.PubAckPacket(packet.packet_id))
    elif isinstance(packet, mqtt5.SubscribePacket):
        codes = [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE for _ in packet.topic_filters]
        party.say(mqtt5.SubAckPacket(packet.packet_id, codes))


def let_in(party: Party, packet: mqtt5.Packet, receive_max: int = 65535) -> None:
    if isinstance(packet, mqtt5.ConnectPacket):
        party.say(mqtt5.ConnAckPacket(receive_max=receive_max))
    elif isinstance(packet, mqtt5.PingReqPacket):
        party.say(mqtt5.PingRespPacket())


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[FakeBroker]:
    authority = make_ca("test CA")
    certificate = make_server(authority, "localhost", "127.0.0.1").write(tmp_path, "server")
    authority.write(tmp_path, "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    broker = FakeBroker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0, ssl=context)
    broker.port = server.sockets[0].getsockname()[1]
    yield broker
    for party in broker.parties:
        party.writer.transport.abort()
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def connected(
    broker: FakeBroker, folder: Path, heard: list[mqtt5.PublishPacket] | None = None, timeout_s: float = DEADLINE_S,
    keepalive_s: int = 60,
) -> AsyncIterator[Client]:  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca.crt")
    taken = [] if heard is None else heard
    async with Client("localhost", broker.port, "hub", context, taken.append, timeout_s, keepalive_s) as client:
        yield client


async def test_what_is_published_arrives_with_all_that_was_said_of_it(broker: FakeBroker, tmp_path: Path) -> None:
    async with connected(broker, tmp_path) as client:
        await client.publish("a", b"1", qos=1, retain=True, content_type="text/plain")
        await client.publish("b", b"2", qos=0, correlation=b"c")
        (party,) = broker.parties
        await until(lambda: len(party.published()) == 2, "both")
        first, second = party.published()
        assert (first.topic, first.payload, first.retain, first.content_type) == ("a", b"1", True, "text/plain")
        assert (second.topic, second.qos, second.correlation_data) == ("b", mqtt5.QoS.AT_MOST_ONCE, b"c")
    await until(lambda: isinstance(party.heard[-1], mqtt5.DisconnectPacket), "the goodbye")


async def test_messages_are_handed_on_in_order_and_receipted_also_when_cut_in_pieces(
    broker: FakeBroker, tmp_path: Path
) -> None:
    heard: list[mqtt5.PublishPacket] = []
    async with connected(broker, tmp_path, heard) as client:
        await client.subscribe([("a/+", 1)])
        (party,) = broker.parties
        qos = mqtt5.QoS.AT_LEAST_ONCE
        packets = [mqtt5.PublishPacket("a/b", b"%d" % n * 30_000, qos=qos, packet_id=n) for n in range(1, 9)]
        data = b"".join(packet.write() for packet in packets)
        for place in range(0, len(data), 70_001):
            party.writer.write(data[place : place + 70_001])
            await party.writer.drain()
        await until(lambda: len(heard) == 8, "all messages")
        assert [packet.payload[:1] for packet in heard] == [b"%d" % n for n in range(1, 9)]
        await until(lambda: len(party.heard) >= 10, "the receipts")
        receipts = [packet.packet_id for packet in party.heard if isinstance(packet, mqtt5.PubAckPacket)]
        assert receipts == list(range(1, 9))


async def test_no_more_wait_for_receipts_than_the_broker_takes(broker: FakeBroker, tmp_path: Path) -> None:
    broker.answer = lambda party, packet: let_in(party, packet, receive_max=3)
    async with connected(broker, tmp_path) as client:
        sent = [asyncio.create_task(client.publish("a", b"%d" % n, qos=1)) for n in range(8)]
        (party,) = broker.parties
        await until(lambda: len(party.published()) == 3, "the first three")
        for number in range(8):
            await until(lambda number=number: len(party.published()) > number, "the next")  # type: ignore[misc]
            waiting = len(party.published()) - number
            assert waiting <= 3
            party.say(mqtt5.PubAckPacket(party.published()[number].packet_id or 0))
        await asyncio.gather(*sent)
    assert sorted(packet.payload for packet in party.published()) == [b"%d" % n for n in range(8)]


async def test_a_refusal_is_said_in_the_words_of_the_broker(broker: FakeBroker, tmp_path: Path) -> None:
    def refuse(party: Party, packet: mqtt5.Packet) -> None:
        let_in(party, packet)
        if isinstance(packet, mqtt5.PublishPacket) and packet.packet_id is not None:
            party.say(mqtt5.PubAckPacket(packet.packet_id, reason_code=mqtt5.PubAckReasonCode.NOT_AUTHORIZED))

    broker.answer = refuse
    async with connected(broker, tmp_path) as client:
        with pytest.raises(ConnectionEnded, match="NOT_AUTHORIZED"):
            await client.publish("a", b"", qos=1)


async def test_a_broker_that_does_not_let_in_is_told_from_one_that_is_silent(
    broker: FakeBroker, tmp_path: Path
) -> None:
    banned = mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.BANNED)
    broker.answer = lambda party, _packet: party.say(banned)
    with pytest.raises(ConnectionEnded, match="BANNED"):
        async with connected(broker, tmp_path):
            pass
    broker.answer = lambda _party, _packet: None
    with pytest.raises(TimeoutError):
        async with connected(broker, tmp_path, timeout_s=0.3):
            pass


async def test_who_waits_for_a_receipt_learns_that_the_connection_is_gone(broker: FakeBroker, tmp_path: Path) -> None:
    broker.answer = let_in
    async with connected(broker, tmp_path) as client:
        sent = asyncio.create_task(client.publish("a", b"", qos=1))
        (party,) = broker.parties
        await until(lambda: len(party.published()) == 1, "the message")
        party.writer.transport.abort()
        with pytest.raises(ConnectionEnded):
            await sent
        assert await asyncio.wait_for(client.ended(), DEADLINE_S)
        with pytest.raises(ConnectionEnded):
            await client.publish("a", b"", qos=0)


async def test_a_receipt_that_does_not_come_is_waited_for_until_the_deadline(
    broker: FakeBroker, tmp_path: Path
) -> None:
    broker.answer = let_in
    async with connected(broker, tmp_path, timeout_s=1.0) as client:
        with pytest.raises(ConnectionEnded, match="did not answer within 1 s"):
            await client.publish("a", b"", qos=1)
        broker.answer = let_in_and_receipt
        await client.publish("b", b"", qos=1)
        first, second = broker.parties[0].published()
        assert first.packet_id != second.packet_id  # the first may still be receipted


@pytest.mark.parametrize("garbage", [b"\x00" * 10, b"\xf0\xff\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
async def test_garbage_ends_the_connection(broker: FakeBroker, tmp_path: Path, garbage: bytes) -> None:
    async with connected(broker, tmp_path) as client:
        broker.parties[0].writer.write(garbage * 20)
        assert await asyncio.wait_for(client.ended(), DEADLINE_S)


async def test_a_broker_that_says_goodbye_is_heard(broker: FakeBroker, tmp_path: Path) -> None:
    async with connected(broker, tmp_path) as client:
        taken = mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER
        broker.parties[0].say(mqtt5.DisconnectPacket(reason_code=taken))
        assert "SESSION_TAKEN_OVER" in await asyncio.wait_for(client.ended(), DEADLINE_S)


async def test_a_connection_in_which_nothing_is_heard_is_given_up(broker: FakeBroker, tmp_path: Path) -> None:
    def mute(party: Party, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.ConnectPacket):
            party.say(mqtt5.ConnAckPacket())

    broker.answer = mute
    async with connected(broker, tmp_path, keepalive_s=1) as client:
        assert "nothing was heard" in await asyncio.wait_for(client.ended(), DEADLINE_S)
    assert any(isinstance(packet, mqtt5.PingReqPacket) for packet in broker.parties[0].heard)
