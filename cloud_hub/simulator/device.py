"""One simulated device: hears the doorbell, walks its updates, reports each state, sends windows, obeys commands.

It has no task: the session, the timer wheel and the answers call it, and it never waits. Made by `fleet`.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from math import ceil
from typing import Final, Literal

import mqtt5

from cloud_hub.simulator import reporting
from cloud_hub.simulator.facts import Untrusted
from cloud_hub.simulator.ground import Ground
from cloud_hub.simulator.identity import Identity
from cloud_hub.simulator.profile import Group, Lie, Link
from cloud_hub.simulator.session import Session
from cloud_hub.simulator.state import IDLE, DeviceState
from cloud_hub.simulator.trust import Ask as Asking
from cloud_hub.simulator.walk import Ask, Effect, Pause, Unanswered, Verify, Walk, World, update
from cloud_hub.simulator.windows import Draws
from modules.commands import Command, CommandResult
from modules.errors import MessageError
from modules.manifest import decode_manifest
from modules.messages import (
    Ack,
    AgentEvent,
    Answer,
    Doorbell,
    Get,
    ModuleReport,
    Offered,
    Offers,
    Refusal,
    decode,
    encode,
)
from modules.topics import down, up
from modules.windows import decode_reference

DEBOUNCE_S: Final = 0.2  # as agents do: changes come together
ASKED_AGAIN: Final = 3
LATER_S: Final = 5.0
LATEST_S: Final = 600.0
ACK_S: Final = 30.0
UNHEARD: Final = 0x10  # the broker's word for "nobody listens"
REFUSED: Final = 0x80
KNOWN_COMMANDS: Final = frozenset({"restart", "logs", "diagnostics"})
_Own = Literal["window", "event"]


class Device:
    """`start` it once; `leave` at the end. `state` is what it would have on its disk."""

    __slots__ = (
        "_asked",
        "_boot",
        "_dirty",
        "_first",
        "_ground",
        "_number",
        "_pending",
        "_question",
        "_replies",
        "_report_soon",
        "_retries",
        "_rung",
        "_sent",
        "_sides",
        "_walk",
        "_walks",
        "_windowed_at",
        "clone",
        "group",
        "identity",
        "session",
        "signer",
        "state",
        "unsaved",
    )  # fmt: skip

    def __init__(
        self, ground: Ground, identity: Identity, state: DeviceState, group: Group | None, clone: bool = False
    ) -> None:
        self._ground, self.identity, self.state, self.group, self.clone = ground, identity, state, group, clone
        self._boot = secrets.token_hex(8)
        self.session = Session(ground, identity, self, self._link, self._boot)
        self.unsaved = True  # its state has changed since it was last written down
        self.signer = identity  # of reports; a liar has another
        self._walk: Walk | None = None
        self._walks = 0  # what was meant for an earlier walk is for nobody
        self._question: Get | Offers | None = None
        self._number = self._asked = self._replies = self._retries = self._rung = 0
        self._sides: dict[int, asyncio.Future[Answer | Refusal]] | None = None
        self._report_soon, self._dirty = False, True
        self._first = b""  # of a liar who repeats it
        self._sent: dict[int, str] = {}  # packets that the broker has not acknowledged: number to topic's channel
        self._pending: set[str] = set()
        self._windowed_at = 0.0

    # --- life --------------------------------------------------------------------------------------------------
    def start(self, delay_s: float) -> None:
        """Connects after the delay; reports and windows are spread over their periods."""
        profile, wheel, chance = self._ground.profile, self._ground.wheel, self._ground.chance
        self.session.start(delay_s)
        wheel.after(delay_s + profile.report_every_s * chance.random(), self._report_due)
        wheel.after(delay_s + profile.poll_s * chance.random(), self._poll)
        if profile.window_every_s and not self.clone:
            self._windowed_at = self._ground.clock()
            wheel.after(delay_s + profile.window_every_s * chance.random(), self._window_due)
        if self._link.offline_every_s and self._link.offline_s:
            wheel.after(chance.expovariate(1 / self._link.offline_every_s), self._go_offline)

    def leave(self) -> None:
        self.session.leave()

    @property
    def lie(self) -> Lie:
        return self.group.lie if self.group is not None else ""

    @property
    def _link(self) -> Link:
        group = self.group
        return group.link if group is not None and group.link is not None else self._ground.profile.link

    @property
    def _mute(self) -> bool:
        return self.state.silent

    # --- what the session says ---------------------------------------------------------------------------------
    def connected(self) -> None:
        self._sent.clear()
        self._pending.clear()
        self._changed()
        self._send_lane("event")
        self._send_lane("window")
        if self._question is not None:
            self._put(self._question)
        elif self._walk is None and not self.state.director_version:
            self._look()

    def lost(self) -> None:
        for future in (self._sides or {}).values():
            if not future.done():
                future.set_exception(Unanswered("the connection ended"))

    def told(self, packet: mqtt5.PublishPacket) -> None:
        """A message of the hub."""
        self._ground.counts.received_bytes += len(packet.payload)
        try:
            said = decode(packet.payload)
        except MessageError as error:
            self._ground.counts.errors[f"bad message: {error}"[:80]] += 1
            return
        if isinstance(said, Answer | Refusal | Offered):
            self._answered(packet.correlation_data or b"", said)
        elif isinstance(said, Doorbell):
            self._rung = max(self._rung, said.director_version)
            self._look_if_rung()
        elif isinstance(said, Ack):
            self._acked(said)
        elif isinstance(said, Command):
            self._obey(said)

    def acknowledged(self, number: int, code: int) -> None:
        """The broker has the packet, or says why not."""
        what = self._sent.pop(number, "")
        if code >= REFUSED:
            self._ground.counts.errors[f"publish refused: 0x{code:02x}"] += 1
        elif what == "state":
            self._ground.counts.reports += 1
        elif what in ("window", "event") and code == UNHEARD:
            pause = self._ground.chance.uniform(LATER_S / 2, LATER_S)
            self._ground.wheel.after(pause, self._send_again, what, self.session.life)

    # --- reports -----------------------------------------------------------------------------------------------
    def _changed(self) -> None:
        self._dirty = True
        if not self._report_soon and not self._mute:
            self._report_soon = True
            self._ground.wheel.after(DEBOUNCE_S, self._report)

    def _report_due(self) -> None:
        self._report()
        period = self._ground.profile.report_every_s
        self._ground.wheel.after(period * self._ground.chance.uniform(0.95, 1.05), self._report_due)

    def _report(self) -> None:
        self._report_soon = False
        if self._mute or not self.session.up:
            return
        ground, lie = self._ground, self.lie
        self.state.counter += 1
        self.unsaved = True
        report = reporting.compose(
            self.identity.device, self.state, ground.hardware, self._boot, ground.clock(), lie,
            self.session.connections,
        )  # fmt: skip
        self._dirty = False
        payload = reporting.signed(report, self.signer)
        self._publish("state", payload, retain=True)
        ground.counts.reports_sent += 1
        if lie:
            ground.counts.lies[lie] += 1
        if lie == "replay":
            self._first = self._first or payload
            self._publish("state", self._first, retain=True)

    def _publish(self, channel: Literal["state", "window", "event"], payload: bytes, retain: bool = False) -> None:
        number = self.session.publish(up(self.identity.device, channel), payload, retain=retain)
        self._sent[number] = channel

    # --- updates -----------------------------------------------------------------------------------------------
    def _poll(self) -> None:
        if self.session.up and self._walk is None and not self._mute:
            self._look()
        period = self._ground.profile.poll_s
        self._ground.wheel.after(period * self._ground.chance.uniform(0.5, 1.5), self._poll)

    def _look_if_rung(self) -> None:
        if self._walk is None and self._rung > self.state.director_version and not self._mute:
            self._look()

    def _look(self) -> None:
        """Begins a walk, once there is trust."""
        ground = self._ground
        self._walks += 1
        self._retries = 0
        files = self.group.files if self.group is not None and self.group.files is not None else ground.profile.files
        world = World(ground.trust, ground.facts, ground.profile.steps, ground.chance)
        self._walk = update(self.identity.device, self.state, world, self.group, files)
        ground.counts.updating += 1
        if ground.trust.verified:
            self._step(None)
        else:
            ground.verify(self)

    def verified(self, failure: str) -> None:
        """The chain has been verified for this walk, or could not be."""
        if failure:
            self._throw(Unanswered(failure))
        else:
            self._step(None)

    def _resume(self, walk: int) -> None:
        if walk == self._walks:
            self._step(None)

    def _step(self, reply: Answer | Refusal | Offered | None) -> None:
        """On until the walk needs something that takes time."""
        if self._walk is None:
            return
        self._drive(partial(self._walk.send, reply))

    def _throw(self, error: Exception) -> None:
        if self._walk is not None:
            self._drive(partial(self._walk.throw, error))

    def _drive(self, go: partial[Effect]) -> None:
        try:
            effect = go()
            while True:
                if isinstance(effect, Ask):
                    self._retries = 0
                    self._put(effect.question)
                    return
                if isinstance(effect, Pause):
                    self._ground.wheel.after(effect.seconds, self._resume, self._walks)
                    return
                if isinstance(effect, Verify):
                    self._ground.verify(self)
                    return
                self._changed()
                if effect.ended:
                    self._ground.counts.updates[effect.ended] += 1
                effect = self._walk.send(None)  # type: ignore[union-attr]  # it is what `go` goes on with
        except StopIteration:
            self._walked("")
        except Unanswered as error:
            self._walked(f"unanswered: {error}")
        except Untrusted as error:
            self._walked(f"untrusted: {error.key}")

    def _walked(self, failure: str) -> None:
        """The walk is over: for good, or for now."""
        self.unsaved = True
        counts, state = self._ground.counts, self.state
        self._walk = self._question = None
        self._walks += 1
        counts.updating -= 1
        if state.silent:
            counts.silent += 1
            return
        if failure:
            counts.errors[failure[:80]] += 1
            state.current = IDLE
            # What the director wants was read and not done: the next look must not take it for old news.
            state.held = {name: digest for name, digest in state.held.items() if name != "director"}
            self._replies += 1
            most = min(LATEST_S, LATER_S * 2.0 ** min(self._replies, 16))
            self._ground.wheel.after(self._ground.chance.uniform(LATER_S / 2, most), self._again, self._walks)
            return
        self._replies = 0
        if self._rung > state.director_version:
            self._look()

    def _again(self, walk: int) -> None:
        if walk == self._walks and self._walk is None:
            self._look()

    # --- questions ---------------------------------------------------------------------------------------------
    def _put(self, question: Get | Offers) -> None:
        self._question = question
        if not self.session.up:
            return  # asked again with the next connection
        self._number += 1
        self._asked = self._number
        self._send_question(question, self._number)
        self._ground.wheel.after(self._ground.profile.answer_s, self._unanswered, self._number)

    def _send_question(self, question: Get | Offers, number: int) -> None:
        device = self.identity.device
        correlation = self._boot[:8].encode() + number.to_bytes(4, "big")
        self._ground.counts.questions += 1
        self.session.publish(
            up(device, "get"),
            encode(question),
            qos=0,
            answer_to=down(device, "data"),
            correlation=correlation,
            expiry_s=max(1, ceil(self._ground.profile.answer_s)),
        )

    def _unanswered(self, number: int) -> None:
        if number != self._asked or self._question is None or not self.session.up:
            return
        self._retries += 1
        self._ground.counts.errors["question not answered in time"] += 1
        if self._retries < ASKED_AGAIN:
            self._put(self._question)
        else:
            self._question = None
            self._throw(Unanswered("no answer"))

    def _answered(self, correlation: bytes, said: Answer | Refusal | Offered) -> None:
        number = int.from_bytes(correlation[8:12], "big")
        if correlation[:8] != self._boot[:8].encode():
            return  # for an earlier life
        if self._sides and number in self._sides:
            future = self._sides.pop(number)
            if not future.done() and not isinstance(said, Offered):
                future.set_result(said)
        elif number == self._asked and self._question is not None:
            self._question = None
            if isinstance(said, Refusal) and said.key == "busy":
                self._throw(Unanswered(said.text))
            else:
                self._step(said)

    async def ask(self, get: Get) -> Answer | Refusal:
        """Beside the walk, for what is done once per process. Raises Unanswered."""
        if not self.session.up:
            raise Unanswered("not connected")
        self._number += 1
        number = self._number
        sides = self._sides = self._sides if self._sides is not None else {}
        future: asyncio.Future[Answer | Refusal] = asyncio.get_running_loop().create_future()
        sides[number] = future
        self._send_question(get, number)
        try:
            async with asyncio.timeout(self._ground.profile.answer_s):
                return await future
        except TimeoutError as error:
            raise Unanswered(f"{get.repository} {get.name}: no answer") from error
        finally:
            sides.pop(number, None)

    # --- the outbox --------------------------------------------------------------------------------------------
    def _window_due(self) -> None:
        ground = self._ground
        ground.wheel.after(ground.profile.window_every_s * ground.chance.uniform(0.95, 1.05), self._window_due)
        if self._mute:
            return
        start, self._windowed_at = self._windowed_at, ground.clock()
        for module in self.state.modules:
            if module.state != "serving":
                continue
            draws = ground.draws.get(module.manifest_sha256)
            if draws is None:
                ground.learn(self, module)
                continue
            lane = self.state.lane("window")
            lost = lane.lost
            name = f"{self._boot[:8]}-{lane.last + 1}"
            lane.put(draws.window(ground.profile.rows, start, self._windowed_at, name, ground.chance))
            ground.counts.windows_lost += lane.lost - lost
        self.unsaved = True
        self._send_lane("window")

    def _send_lane(self, stream: _Own) -> None:
        """All that waits; again when no acknowledgement comes."""
        lane = self.state.window if stream == "window" else self.state.event
        if lane is None or not lane.waiting or not self.session.up or self._mute or self.clone:
            return
        self._publish(stream, encode(lane.batch(stream)))
        if stream not in self._pending:
            self._pending.add(stream)
            self._ground.wheel.after(ACK_S, self._send_again, stream, self.session.life)

    def _send_again(self, stream: _Own, life: int) -> None:
        if life == self.session.life:
            self._pending.discard(stream)
            self._send_lane(stream)

    def _acked(self, ack: Ack) -> None:
        if ack.stream not in ("window", "event"):
            return
        lane = self.state.window if ack.stream == "window" else self.state.event
        if lane is None:
            return
        off = lane.hear(ack)
        self.unsaved = True
        if ack.stream == "window":
            self._ground.counts.windows += off
        if ack.lost:
            self._send_lane("window" if ack.stream == "window" else "event")

    # --- commands ----------------------------------------------------------------------------------------------
    def _obey(self, command: Command) -> None:
        """Each once. Nothing is behind it: there is no log and no worker here, only the answer."""
        if self._mute or self.clone or not self.state.did(command.id):
            return
        self._ground.counts.commands += 1
        result = CommandResult(command.id, "done")
        if command.expires_at <= self._ground.clock():
            result = CommandResult(command.id, "expired", "expired", "came after its end")
        elif command.kind not in KNOWN_COMMANDS:
            result = CommandResult(command.id, "refused", "simulated", f"a simulated device has no {command.kind}")
        event = AgentEvent(self._ground.clock(), "info", "command", f"{command.kind}: {result.outcome}", command=result)
        self.state.lane("event").put(encode(event))
        self._send_lane("event")

    def _go_offline(self) -> None:
        chance, link = self._ground.chance, self._link
        away = link.offline_s * chance.uniform(0.5, 1.5)
        self.session.stop(away)
        self._ground.wheel.after(away + chance.expovariate(1 / link.offline_every_s), self._go_offline)


async def learn(ask: Asking, module: ModuleReport) -> Draws | None:
    """What the module's windows are drawn from; None where it has no reference. Raises Unanswered, ModuleError."""
    manifest = decode_manifest(await _whole(ask, module.manifest_sha256))
    if not manifest.reference:
        return None
    profile = decode_reference(await _whole(ask, manifest.file(manifest.reference).sha256))
    return Draws(manifest, module.manifest_sha256, profile)


async def _whole(ask: Asking, digest: str) -> bytes:
    data = b""
    while True:
        answer = await ask(Get("blob", digest, len(data)))
        if isinstance(answer, Refusal) or not answer.data:
            raise Unanswered(f"{digest}: {answer.text if isinstance(answer, Refusal) else 'no bytes'}")
        data += answer.data
        if len(data) >= answer.total:
            return data
