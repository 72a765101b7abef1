"""MQTT 5 as a simulated device speaks it: connected and subscribed, packets numbered, kept alive, far away if need be.

What is said and heard above MQTT is `device`'s. Called by `device` only.
"""

from __future__ import annotations

from typing import Protocol

import mqtt5

from cloud_hub.simulator.ground import Ground
from cloud_hub.simulator.identity import Identity
from cloud_hub.simulator.link import Way
from cloud_hub.simulator.profile import Link
from cloud_hub.simulator.wire import MAX_PACKET_BYTES, Wire
from modules.messages import Presence, encode
from modules.topics import all_down, up

CONNECT_S = 20.0  # from the first packet to the subscription; on a device of its own an agent waits 2
FIRST_RETRY_S = 0.5
ABSENT_AFTER_S = 5  # as agents ask: the last will is said so long after a loss, unless the device is back
STABLE_S = 5.0  # a connection that lasted so long was a good one
_SUBSCRIPTION = 1  # its packet's number; publishing begins behind it
_DOUBLINGS = 16


class Speaker(Protocol):
    """Who sits on a session. Must not raise."""

    def connected(self) -> None: ...
    def lost(self) -> None: ...
    def told(self, packet: mqtt5.PublishPacket) -> None: ...
    def acknowledged(self, number: int, code: int) -> None: ...


class Session:
    """Connects again by itself after each loss, with full jitter, until `stop`."""

    __slots__ = (
        "_boot", "_failures", "_ground", "_heard_at", "_identity", "_in", "_number", "_out", "_said_at", "_since",
        "_slot", "_speaker", "_wire", "connections", "life", "stopped", "up",
    )  # fmt: skip

    def __init__(self, ground: Ground, identity: Identity, speaker: Speaker, link: Link, boot: str) -> None:
        """`boot` names this life of the device."""
        self._ground, self._identity, self._speaker, self._boot = ground, identity, speaker, boot
        self._out = None if link.is_plain else Way(link)
        self._in = None if link.is_plain else Way(link)
        self._wire: Wire | None = None
        self._number, self._failures = _SUBSCRIPTION, 0
        self._said_at = self._heard_at = self._since = 0.0
        self._slot = False  # one of those that may shake hands at the same time
        self.life = 0  # grows with every beginning and end: what was meant for an earlier one is for nobody
        self.connections = 0
        self.up = self.stopped = False

    def start(self, delay_s: float) -> None:
        self.stopped = False
        self._ground.wheel.after(delay_s, self._ask_for_slot, self.life)

    def stop(self, delay_s: float = -1.0) -> None:
        """Without a word to the broker. With a delay it comes back after it."""
        self.stopped = delay_s < 0
        self._drop()
        if delay_s >= 0:
            self._ground.wheel.after(delay_s, self._ask_for_slot, self.life)

    def leave(self) -> None:
        """In order: the broker does not send the last will."""
        if self.up and self._wire is not None:
            # The broker forgets the will then, so the device says itself that it goes.
            self._greet(online=False)
            self._wire.send(mqtt5.DisconnectPacket().write())
        self.stop()

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        retain: bool = False,
        answer_to: str = "",
        correlation: bytes = b"",
        expiry_s: int | None = None,
    ) -> int:
        """The packet's number, 0 with quality 0. Only while `up`."""
        number = 0
        if qos:
            self._number = self._number % 65_535 + 1
            number = self._number
        packet = mqtt5.PublishPacket(
            topic,
            payload,
            qos=mqtt5.QoS.AT_LEAST_ONCE if qos else mqtt5.QoS.AT_MOST_ONCE,
            retain=retain,
            packet_id=number or None,
            response_topic=answer_to or None,
            correlation_data=correlation or None,
            message_expiry_interval=expiry_s,
        )
        self._say(packet.write())
        return number

    # --- what the wire says ------------------------------------------------------------------------------------
    def opened(self) -> None:
        profile = self._ground.profile
        self._say(
            mqtt5.ConnectPacket(
                self._identity.device,
                clean_start=False,
                will=self._will(),
                keep_alive=profile.keepalive_s,
                session_expiry_interval=profile.session_s,
                max_packet_size=MAX_PACKET_BYTES,
            ).write()
        )

    def heard(self, packet: mqtt5.Packet) -> None:
        self._heard_at = self._ground.now()
        if self._in is None:
            self._hear(self.life, packet)
            return
        size = len(packet.payload) if isinstance(packet, mqtt5.PublishPacket) else 4
        delay = self._in.delay_s(size, self._heard_at, self._ground.chance)
        self._ground.wheel.after(delay, self._hear, self.life, packet)

    def ended(self, why: str) -> None:
        self._ground.counts.errors[_reason(why)] += 1
        self._again()

    # --- below -------------------------------------------------------------------------------------------------
    def _hear(self, life: int, packet: mqtt5.Packet) -> None:
        if life != self.life or self._wire is None:
            return
        if isinstance(packet, mqtt5.PublishPacket):
            if packet.packet_id is not None:
                self._say(mqtt5.PubAckPacket(packet.packet_id).write())
            self._speaker.told(packet)
        elif isinstance(packet, mqtt5.PubAckPacket):
            self._speaker.acknowledged(packet.packet_id, int(packet.reason_code))
        elif isinstance(packet, mqtt5.ConnAckPacket):
            self._admitted(packet)
        elif isinstance(packet, mqtt5.SubAckPacket):
            self._subscribed(packet)
        elif isinstance(packet, mqtt5.DisconnectPacket):
            self._fail(f"disconnected: {packet.reason_code.name}")

    def _admitted(self, packet: mqtt5.ConnAckPacket) -> None:
        if packet.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            self._fail(f"not admitted: {packet.reason_code.name}")
            return
        pattern = mqtt5.TopicFilter(all_down(self._identity.device), max_qos=mqtt5.QoS.AT_LEAST_ONCE)
        self._say(mqtt5.SubscribePacket(_SUBSCRIPTION, [pattern]).write())

    def _subscribed(self, packet: mqtt5.SubAckPacket) -> None:
        if any(int(code) >= 0x80 for code in packet.reason_codes):
            self._fail("subscription refused")
            return
        self._give_back_slot()
        self.up, self._since = True, self._ground.now()
        self.connections += 1
        self._greet(online=True)
        counts = self._ground.counts
        counts.connected += 1
        counts.connects += 1
        self._ground.wheel.after(self._ground.profile.keepalive_s * 0.9, self._keep_alive, self.life)
        self._speaker.connected()

    def _will(self) -> mqtt5.Will:
        said = encode(Presence(False, self._boot, self.connections + 1))
        topic = up(self._identity.device, "presence")
        return mqtt5.Will(
            topic, payload=said, qos=mqtt5.QoS.AT_LEAST_ONCE, retain=True, will_delay_interval=ABSENT_AFTER_S
        )

    def _greet(self, online: bool) -> None:
        said = encode(Presence(online, self._boot, self.connections, left=not online))
        self.publish(up(self._identity.device, "presence"), said, retain=True)

    def _say(self, data: bytes) -> None:
        self._said_at = self._ground.now()
        if self._out is None:
            self._send(self.life, data)
        else:
            delay = self._out.delay_s(len(data), self._said_at, self._ground.chance)
            self._ground.wheel.after(delay, self._send, self.life, data)

    def _send(self, life: int, data: bytes) -> None:
        if life == self.life and self._wire is not None:
            self._wire.send(data)

    def _keep_alive(self, life: int) -> None:
        """Only where nothing else was said, as clients do. A broker that says nothing at all is given up."""
        if life != self.life or not self.up:
            return
        keepalive_s, now = self._ground.profile.keepalive_s, self._ground.now()
        if now - self._heard_at > 2 * keepalive_s:
            self._fail("nothing heard")
            return
        quiet = now - self._said_at
        if quiet >= keepalive_s * 0.8:
            self._say(mqtt5.PingReqPacket().write())
            quiet = 0.0
        self._ground.wheel.after(keepalive_s * 0.9 - quiet, self._keep_alive, self.life)

    def _ask_for_slot(self, life: int) -> None:
        if life == self.life and self._wire is None and not self.stopped:
            self._ground.slots.ask(self._open)

    def _open(self) -> bool:
        """Whether the slot is used."""
        if self._wire is not None or self.stopped:
            return False
        self._slot = True
        self.life += 1
        self._wire = Wire(self._ground.poller, self._ground.tls, self._identity, self)
        self._ground.wheel.after(CONNECT_S, self._overdue, self.life)
        self._wire.open(self._ground.host, self._ground.address, self._ground.family)
        return True

    def _overdue(self, life: int) -> None:
        if life == self.life and self._wire is not None and not self.up:
            self._fail("connecting took too long")

    def _fail(self, why: str) -> None:
        self._ground.counts.errors[why] += 1
        self._again()

    def _again(self) -> None:
        lasted = self.up and self._ground.now() - self._since >= STABLE_S
        self._drop()
        self._failures = 1 if lasted else min(self._failures + 1, _DOUBLINGS)
        most = min(self._ground.profile.reconnect_s, FIRST_RETRY_S * 2.0 ** (self._failures - 1))
        if not self.stopped:
            self._ground.wheel.after(most * self._ground.chance.random(), self._ask_for_slot, self.life)

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        self.life += 1
        if wire is not None:
            wire.close()
        self._give_back_slot()
        if self.up:
            self.up = False
            self._ground.counts.connected -= 1
            self._ground.counts.losses += 1
            self._speaker.lost()

    def _give_back_slot(self) -> None:
        if self._slot:
            self._slot = False
            self._ground.slots.give_back()


def _reason(why: str) -> str:
    """Without what differs from one connection to the next, so that it can be counted."""
    return why.partition(" (_ssl.c")[0][:80]
