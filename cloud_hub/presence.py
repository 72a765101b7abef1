"""Who is connected, as the broker has it from the devices and from their last wills. Written in groups.

A word is kept here for a moment: after a restart of the broker all devices say theirs at once, and each second's words
share a few transactions. What is lost with the process is retained in the broker, and comes with the next connection.
Noted by `link`; `run` is one of the hub's background works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Float, Integer, String, Update, and_, bindparam, or_, true, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from cloud_hub.clock import Clock
from cloud_hub.query.facts import LATE_S
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from modules.errors import MessageError
from modules.messages import Presence

FLUSH_S: Final = 1.0
GROUP: Final = 1000  # devices of one transaction: some 20 ms in SQLite
MAX_WAITING: Final = 200_000
MAX_BOOT_CHARS: Final = 40
MAX_NUMBER: Final = 2**31 - 1
_GIVEN: Final[tuple[tuple[str, TypeEngine[Any]], ...]] = (("boot", String()), ("number", Integer()), ("now", Float()))
_log = logging.getLogger(__name__)


class PresenceBook:
    """The last word of each device. Words about the same life of an agent are ordered by their number."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[str, Presence] = {}
        self._news = asyncio.Event()
        self.written = 0  # transactions, since the start

    def note(self, device: str, said: Presence) -> None:
        """Never waits. Raises MessageError for a word that no agent says."""
        if len(said.boot) > MAX_BOOT_CHARS or not said.boot.isprintable() or not 0 <= said.number <= MAX_NUMBER:
            raise MessageError(f"presence: expected a boot of up to {MAX_BOOT_CHARS} characters and a small number")
        before = self._waiting.get(device)
        if before is None and len(self._waiting) >= MAX_WAITING:
            return  # retained, so it is not lost
        if before is None or before.boot != said.boot or before.number <= said.number:
            self._waiting[device] = said
            self._news.set()

    async def run(self) -> None:
        """Writes what has come, at most once in FLUSH_S."""
        while True:
            await self._news.wait()
            try:
                await self.flush()
            except Exception:
                _log.exception("presence could not be written; trying again in %s s", FLUSH_S)
            await asyncio.sleep(FLUSH_S)

    async def flush(self) -> None:
        """What is waiting is in the database then; after a failure it waits on, unless there is a newer word."""
        self._news.clear()
        coming, self._waiting = self._waiting, {}
        try:
            for group in in_slices(list(coming.items()), GROUP):
                async with self._store.write() as connection:
                    await _write(connection, group, self._clock())
                self.written += 1
                for device, _ in group:
                    del coming[device]
        finally:
            if coming:
                self._waiting = coming | self._waiting
                self._news.set()


def is_online(row: Mapping[str, Any], now: float, offline_after_s: float) -> bool:
    """Of one row of `devices`: heard of lately, and not gone since. `query.sql.online` says the same in the database.

    A report that comes well after the end is of an agent that tells no presence.
    """
    since = now - offline_after_s
    report_at, online_at, offline_at = row["report_at"], row["online_at"], row["offline_at"]
    heard = (report_at is not None and report_at >= since) or (online_at is not None and online_at >= since)
    late = report_at is not None and offline_at is not None and report_at > offline_at + LATE_S
    return row["retired_at"] is None and heard and (row["present"] is not False or late)


async def _write(connection: AsyncConnection, group: Sequence[tuple[str, Presence]], now: float) -> None:
    for online in (True, False):
        said = [
            {"device": device, "boot": one.boot, "number": one.number, "now": now}
            for device, one in group
            if one.online is online
        ]
        if said:
            await connection.execute(_ONLINE if online else _OFFLINE, said)


def _statement(online: bool) -> Update:
    """Changes a device of which this is news; the words of a broker that was connected to anew mostly are none."""
    d = devices.c
    boot, number, now = (bindparam(name, type_=kind) for name, kind in _GIVEN)
    newer: ColumnElement[bool] = d.presence_number < number
    if not online:
        newer = or_(newer, and_(d.presence_number == number, d.present == true()))
    newer = and_(d.presence_boot == boot, newer)
    other = d.presence_boot != boot
    if not online:
        # The last word of an earlier life, which another hub may have written only now, ends no later one.
        other = and_(other, or_(d.present.is_not(true()), d.online_at < now - LATE_S))
    fresh = or_(d.presence_boot.is_(None), other, newer)
    which = and_(d.id == bindparam("device"), d.retired_at.is_(None), fresh)
    at = d.online_at if online else d.offline_at
    values = {at: now, d.seen_at: now, d.present: online, d.presence_boot: boot, d.presence_number: number}
    return update(devices).where(which).values(values)


_ONLINE: Final = _statement(True)
_OFFLINE: Final = _statement(False)
