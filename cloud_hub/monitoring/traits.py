"""What each device has in common with others, as the database says it at this moment. Used by `committing`.

Version and operating system stand in a device's last report, which is read once per report and not per batch.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.scopes import DeviceTraits
from cloud_hub.store.among import among
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.tables import devices

MAX_KEPT: Final = 100_000
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")  # a device says what it likes


class _Profile(msgspec.Struct, frozen=True):
    os: str = ""


class _Report(msgspec.Struct, frozen=True):
    agent_version: str = ""
    profile: _Profile = _Profile()


_decoder: Final = msgspec.json.Decoder(_Report)


class Traits:
    """Reads them for many devices at a time."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, tuple[int, str, str]] = OrderedDict()

    async def of(self, connection: AsyncConnection, ids: Collection[str]) -> dict[str, DeviceTraits | None]:
        """By device; None for one that is retired. Without those that are not known here."""
        found: dict[str, DeviceTraits | None] = {}
        columns = (devices.c.id, devices.c.profile, devices.c.tags, devices.c.retired_at, devices.c.report_counter)
        for some in in_slices(sorted(ids)):
            rows: list[Any] = list(await connection.execute(select(*columns).where(among(devices.c.id, some))))
            await self._read_reports(connection, rows)
            for row in rows:
                gone = row.retired_at is not None
                found[row.id] = None if gone else DeviceTraits(row.profile, row.tags, *self._heard(row.id))
        return found

    async def _read_reports(self, connection: AsyncConnection, rows: Collection[Any]) -> None:
        new = {row.id: row.report_counter for row in rows if self._said.get(row.id, (0,))[0] != row.report_counter}
        if not new:
            return
        query = select(devices.c.id, devices.c.report).where(among(devices.c.id, new))
        for row in await connection.execute(query):
            self._said[row.id] = (new[row.id], *_said(row.report))
            self._said.move_to_end(row.id)
        while len(self._said) > MAX_KEPT:
            self._said.popitem(last=False)

    def _heard(self, device: str) -> tuple[str, str]:
        _, agent, system = self._said.get(device, (0, "", ""))
        return agent, system


def _said(report: bytes | None) -> tuple[str, str]:
    """Version and operating system, empty where they are no words."""
    try:
        found = _decoder.decode(report or b"{}")
    except msgspec.MsgspecError:
        return "", ""
    agent, system = (text if _WORD.fullmatch(text) else "" for text in (found.agent_version, found.profile.os))
    return agent, system
