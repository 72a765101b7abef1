"""Reports of many devices in one transaction: what each says, what gives away a second device, what is new in it.

Rows are read, signatures are checked outside of the transaction, and inside it the rows are read again: a device whose
certificates have changed meanwhile is checked anew. The bad report of one device changes nothing for the others.
Called by `devices`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.clone_alerts import CloneAlerts
from cloud_hub.clones import remembered, suspicion
from cloud_hub.errors import HubError
from cloud_hub.events import Events, Happened
from cloud_hub.intake.checking import Arrived, Checked, Standing, check, check_all
from cloud_hub.inventory import facts_of, module_rows
from cloud_hub.renewals import Renewals
from cloud_hub.store.bulk import insert_many, update_many
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import devices, reported_modules
from modules.messages import DeviceReport, decode_report

Outcome = DeviceReport | HubError | None  # taken; refused, and why; not newer than the last
FEW: Final = 8  # reports whose checks (0.1 ms each) are not worth a thread
_COLUMNS = tuple(devices.c[name] for name in Standing.__dataclass_fields__)


class ReportStore:
    """Takes groups of reports. Counters only grow, so the same report twice, or by two replicas, counts once."""

    def __init__(self, store: Store, events: Events, renewals: Renewals, clones: CloneAlerts, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._renewals = renewals
        self._clones = clones
        self._clock = clock

    async def take(self, batch: Sequence[Arrived]) -> list[Outcome]:
        """What became of each, in their order. Raises nothing for what one device did wrong."""
        async with self._store.read() as connection:
            standings = await _standings(connection, {device for device, _ in batch})
        checked = await _checked(batch, standings)
        if all(one.report is None for one in checked):
            return [one.error for one in checked]
        async with self._store.write() as connection:
            wanted = {device for (device, _), one in zip(batch, checked, strict=True) if one.report is not None}
            current = await _standings(connection, wanted)
            turn = _Turn(connection, self._events, self._renewals, self._clones, self._clock())
            outcomes = [
                await turn.take(arrived, current.get(arrived[0]), one) if one.report is not None else one.error
                for arrived, one in zip(batch, checked, strict=True)
            ]
            await turn.store()
        return outcomes


class _Turn:
    """One transaction on several devices."""

    def __init__(
        self, connection: AsyncConnection, events: Events, renewals: Renewals, clones: CloneAlerts, now: float
    ) -> None:
        self._connection = connection
        self._events = events
        self._renewals = renewals
        self._clones = clones
        self._now = now
        self._changes: dict[str, dict[str, Any]] = {}
        self._modules: dict[str, list[dict[str, Any]]] = {}  # where others than before
        self._attacks: list[Happened] = []

    async def take(self, arrived: Arrived, standing: Standing | None, one: Checked) -> Outcome:
        if standing is None or standing.retired_at is not None or one.signed_with not in standing.known:
            one = check(arrived, standing)
        report = one.report
        if report is None or standing is None:
            return one.error
        if one.signed_with == standing.next_certificate:
            await self._renewals.seen(self._connection, standing)
            standing.certificate, standing.next_certificate = standing.next_certificate, None
        before = None if standing.report is None else decode_report(standing.report)
        if why := suspicion(standing.boots, before, report):
            await self._clones.suspect(self._connection, standing.id, why)
        if report.counter <= standing.report_counter:
            return None
        self._attacks += _new_attacks(standing.id, report, before)
        self._keep(standing, report, arrived[1].body)
        rows = module_rows(report)
        if before is None or module_rows(before) != rows:
            self._modules[standing.id] = rows
        return report

    def _keep(self, standing: Standing, report: DeviceReport, body: bytes) -> None:
        standing.boots = remembered(standing.boots, report)
        standing.report_counter, standing.report = report.counter, body
        self._changes[standing.id] = {
            "id": standing.id,
            "report_counter": report.counter,
            "report_at": self._now,
            "report": body,
            "boots": standing.boots,
            "known_version": report.director_version,
            **facts_of(report, self._now),
        }

    async def store(self) -> None:
        await update_many(self._connection, devices, list(self._changes.values()))
        await self._store_modules()
        await self._events.record_many(self._connection, self._attacks)

    async def _store_modules(self) -> None:
        if self._modules:
            gone = delete(reported_modules).where(among(reported_modules.c.device, self._modules))
            await self._connection.execute(gone)
            rows = [row for found in self._modules.values() for row in found]
            await insert_many(self._connection, reported_modules, rows)


async def _checked(batch: Sequence[Arrived], standings: Mapping[str, Standing]) -> list[Checked]:
    if len(batch) <= FEW:
        return check_all(batch, standings)
    return await asyncio.to_thread(check_all, batch, standings)


async def _standings(connection: AsyncConnection, wanted: Collection[str]) -> dict[str, Standing]:
    rows = await connection.execute(select(*_COLUMNS).where(among(devices.c.id, wanted)))
    return {row.id: Standing(*row) for row in rows}


def _new_attacks(device: str, report: DeviceReport, before: DeviceReport | None) -> list[Happened]:
    known = {attack.key: attack.count for attack in before.attacks} if before is not None else {}
    return [
        Happened("device.attack", device, device, {"key": one.key, "text": one.text, "count": one.count})
        for one in report.attacks
        if one.count > known.get(one.key, 0)
    ]
