"""Asks devices to do things: writes the command down, sends it now and again until it is answered or its time is over.

A device does each once, however often it comes, so nothing here has to know whether it was heard. Called by
`api.asking` and `api.commands`; `service` wires reports in, because a device that has connected sends one. The result
arrives as an event, see `monitoring.committing`; what it brings as a blob beside those of samples, see `results`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import msgspec
from sqlalchemy import select

from cloud_hub.asking import book
from cloud_hub.asking.book import MAX_PENDING, AskedCommand
from cloud_hub.asking.finding import find
from cloud_hub.asking.holders import Holder, holders
from cloud_hub.asking.wanted import DAY_S, MAX_LIFE_S, NewCommand
from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.events import Events, Happened
from cloud_hub.query import Moment
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import commands
from modules.commands import SAMPLES, AskSamples, Command, encode_asked

ROUND_S: Final = 5.0
AGAIN_S: Final = 30.0
SOON_S: Final = 1.0  # a device that reports often does not get everything each time
FORGET_S: Final = 90 * 86_400.0  # as long as a command may be looked up
MAX_ROUND: Final = 500
MAX_HINTS: Final = 100_000

_log = logging.getLogger(__name__)
Send = Callable[[str, Command], Awaitable[object]]


class NewSampleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the ring of `asked.module` on `device`; the device may answer within `expires_s`."""

    device: str
    asked: AskSamples
    expires_s: float = DAY_S

    def __post_init__(self) -> None:
        if not 1.0 <= self.expires_s <= MAX_LIFE_S:
            raise ValueError(f"expires_s: expected 1 to {MAX_LIFE_S:g} seconds, got {self.expires_s}")


class CommandBatch(msgspec.Struct, frozen=True):
    """What was asked at once, one command for each device. `outdated` are devices whose agent knows no commands: they
    were left out.
    """

    batch: str
    commands: tuple[AskedCommand, ...]
    outdated: tuple[str, ...] = ()


class Commands:
    """`send` publishes to a device, and may do nothing while there is no connection; it must not raise."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        events: Events,
        clock: Clock,
        send: Send,
        offline_after_s: float = 900.0,
    ) -> None:
        """`offline_after_s`: a device that was not heard for so long is offline, in queries that ask for it."""
        self._store, self._blobs, self._events, self._clock, self._send = store, blobs, events, clock, send
        self._offline_after_s = offline_after_s
        self._waiting: set[str] = set()  # devices for which something may wait; a hint, corrected by ticks and reports

    async def ask(self, new: NewCommand, actor: str, scope: Scope = EVERYTHING) -> CommandBatch:
        """Raises BadRequest `query-invalid`, NotFound `device-not-found`, Unprocessable `no-device-matches` or
        `too-many-devices`, Conflict `agent-outdated` or `too-many-commands`; then nothing was asked.
        """
        now = self._clock()
        async with self._store.write() as connection:
            fitting, outdated = await find(connection, new, scope, Moment(now, self._offline_after_s))
            full = await book.counted(connection, now, fitting)
            if late := sorted(device for device, count in full.items() if count >= MAX_PENDING):
                raise _too_many(late[0])
            asked = [self._new(device, new, actor, now) for device in fitting]
            batch = f"b-{secrets.token_hex(6)}" if new.target else ""
            asked = [msgspec.structs.replace(one, batch=batch) for one in asked]
            await book.put(connection, asked, new.body)
            await self._events.record_many(connection, [_created(one) for one in asked])
        await self._deliver([(one.device, Command(one.id, one.kind, one.expires_at, new.body)) for one in asked])
        return CommandBatch(batch, tuple(asked), tuple(outdated))

    async def cancel(self, id_: str, actor: str) -> AskedCommand:
        """It is not sent any more. Raises NotFound `command-not-found`, Conflict `command-ended`."""
        async with self._store.write() as connection:
            found = await book.get(connection, id_)
            if found is None:
                raise _unknown(id_)
            if not await book.cancel(connection, id_, self._clock()):
                text = f"command {id_}: it has ended ({found.state}); nothing was changed"
                raise Conflict("command-ended", text, id=id_, state=found.state)
            await self._events.record(
                connection, "command.cancelled", actor, found.device, id=id_, command=found.kind, sent=found.sent_at
            )
        return await self.get(id_)

    async def ask_samples(self, new: NewSampleRequest, actor: str) -> AskedCommand:
        """Raises NotFound `device-not-found` or `not-assigned`, Conflict `agent-outdated`, `no-ring` or
        `too-many-commands`.
        """
        found = [one for one in await self._holders(new) if one.device == new.device]
        if not found:
            text = f"device {new.device}: module {new.asked.module} is not assigned to it"
            raise NotFound("not-assigned", text, device=new.device, module=new.asked.module)
        _check(found[0], new)
        asked: dict[str, Any] = {k: v for k, v in msgspec.to_builtins(new.asked).items() if v and k != "module"}
        return await self._put(new.device, SAMPLES, new.asked.module, asked, encode_asked(new.asked), new, actor)

    async def listed(
        self,
        device: str,
        module: str,
        state: str,
        limit: int,
        devices: Collection[str] | None = None,
        *,
        kind: str = "",
        batch: str = "",
        after: tuple[float, str] | None = None,
    ) -> list[AskedCommand]:
        async with self._store.read() as connection:
            return await book.listed(
                connection, device, module, state, limit, devices, kind=kind, batch=batch, after=after
            )

    async def get(self, id_: str) -> AskedCommand:
        """Raises NotFound `command-not-found`."""
        async with self._store.read() as connection:
            found = await book.get(connection, id_)
        if found is None:
            raise _unknown(id_)
        return found

    async def heard(self, device: str) -> None:
        await self.heard_many([device])

    async def heard_many(self, devices: Collection[str]) -> None:
        """The devices are there: what waits for them is sent now. Where nothing waits, nothing is read."""
        there = sorted(self._waiting.intersection(devices))
        for some in in_slices(there):
            async with self._store.read() as connection:
                now = self._clock()
                waiting = await book.pending(connection, now, MAX_ROUND, some, sent_before=now - SOON_S)
                asked = await book.counted(connection, now, some)
            self._waiting.difference_update(set(some) - asked.keys())
            await self._deliver(waiting)

    async def run(self) -> None:
        """Sends again what has no answer, and ends what is too late, until cancelled."""
        while True:
            await asyncio.sleep(ROUND_S)
            try:
                await self.tick()
            except Exception:
                _log.exception("commands could not be seen to; trying again in %s s", ROUND_S)

    async def tick(self) -> None:
        now = self._clock()
        async with self._store.read() as connection:
            waiting = await book.pending(connection, now, MAX_ROUND, sent_before=now - AGAIN_S)
            self._waiting = await book.waiting_devices(connection, now, MAX_HINTS)
            ended = (commands.c.state != book.PENDING) & (commands.c.created_at < now - FORGET_S)
            late = (commands.c.state == book.PENDING) & (commands.c.expires_at <= now)
            due = (await connection.execute(select(commands.c.id).where(ended | late).limit(1))).first()
        if due is not None:
            async with self._store.write() as connection:
                for one in await book.expire(connection, now, MAX_ROUND):
                    await self._events.record(
                        connection, "command.ended", "hub", one.device, id=one.id, state="expired"
                    )
                await book.forget(connection, now - FORGET_S, MAX_ROUND)
        await self._deliver(waiting)

    async def _holders(self, new: NewSampleRequest) -> list[Holder]:
        async with self._store.read() as connection:
            return await holders(connection, self._blobs, new.asked.module, [new.device])

    async def _put(
        self,
        device: str,
        kind: str,
        module: str,
        asked: dict[str, Any],
        body: bytes,
        new: NewSampleRequest,
        actor: str,
    ) -> AskedCommand:
        now = self._clock()
        one = AskedCommand(
            f"c-{secrets.token_hex(6)}", device, kind, module, asked, book.PENDING, now, actor, now + new.expires_s,
            None, None, "", "", 0, 0, 0,
        )  # fmt: skip
        async with self._store.write() as connection:
            if (await book.counted(connection, now, [device])).get(device, 0) >= MAX_PENDING:
                raise _too_many(device)
            await book.put(connection, [one], body)
            await self._events.record_many(connection, [_created(one)])
        await self._deliver([(device, Command(one.id, kind, one.expires_at, body))])
        return one

    def _new(self, device: str, new: NewCommand, actor: str, now: float) -> AskedCommand:
        return AskedCommand(
            f"c-{secrets.token_hex(6)}", device, new.kind, new.module, new.words, book.PENDING, now, actor,
            now + new.expires_s, None, None, "", "", 0, 0, 0,
        )  # fmt: skip

    async def _deliver(self, waiting: list[tuple[str, Command]]) -> None:
        self._waiting.update(device for device, _ in waiting)
        for device, command in waiting:
            await self._send(device, command)
        if waiting:
            async with self._store.write() as connection:
                await book.sent(connection, [command.id for _, command in waiting], self._clock())


def _created(one: AskedCommand) -> Happened:
    details = {"id": one.id, "command": one.kind, "module": one.module, "asked": one.asked}
    return Happened(
        "command.created", one.created_by, one.device, details | ({"batch": one.batch} if one.batch else {})
    )


def _unknown(id_: str) -> NotFound:
    return NotFound("command-not-found", f"no command {id_[:32]}", id=id_[:32])


def _too_many(device: str) -> Conflict:
    text = f"device {device}: {MAX_PENDING} commands wait for it already; nothing was asked"
    return Conflict("too-many-commands", text, device=device)


def _check(holder: Holder, new: NewSampleRequest) -> None:
    if holder.outdated:
        text = f"device {holder.device} runs agent {holder.agent_version}, which knows no commands: update it first"
        raise Conflict("agent-outdated", text, device=holder.device, agent_version=holder.agent_version)
    if not holder.policy.ring_rows:
        text = (
            f"the signed policy of {new.asked.module} keeps no predictions on {holder.device}; "
            f"mooring sampling set {new.asked.module} --device {holder.device} --ring-rows 10000"
        )
        raise Conflict("no-ring", text, device=holder.device, module=new.asked.module)
    known = {"base", "low_confidence", *(one.name for one in holder.policy.strata or ())}
    if new.asked.stratum and new.asked.stratum not in known:
        text = f"stratum: expected one of {', '.join(sorted(known))}, got {new.asked.stratum[:40]!r}"
        raise BadRequest("unknown-stratum", text)
