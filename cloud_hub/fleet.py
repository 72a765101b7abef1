"""The fleet as people look at it: lists in pages, counts, and why one device is not as desired. Only reads.

The database filters, sorts and counts; a report is decoded only where it is shown. Called by `api.devices`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.device_rows import Device, Running, to_device
from cloud_hub.explaining import Part
from cloud_hub.groups.resolving import in_scope, put_in
from cloud_hub.query import Moment, parse
from cloud_hub.query.sql import differing, online
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.rollouts.records import to_execution, to_rollout
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import devices, executions, group_members, reported_modules, rollouts

FEW: Final = 64  # devices that are made of their rows on the loop, some 50 µs each; more in a thread
MAX_KINDS: Final = 1000  # lines of a summary
PARTS_SHOWN: Final = 20  # rollouts that explain one device, the newest


class FleetQuery(msgspec.Struct, frozen=True):
    """Which devices: what `query` means, and retired ones only with `retired` or where the query asks for them."""

    query: str = "all"
    retired: bool = False


class ProfileCount(msgspec.Struct, frozen=True):
    """Devices of one profile with one version of the agent, and how many of these are in which state."""

    profile: str
    agent_version: str
    devices: int
    online: int
    differs: int
    updating: int
    never: int


class ModuleCount(msgspec.Struct, frozen=True):
    """Devices that report this version of a module in this state."""

    module: str
    version: int
    role: str
    state: str
    verified: bool
    devices: int


class FleetSummary(msgspec.Struct, frozen=True):
    """How many devices there are, of what, running what. `failed` have a module that has failed."""

    devices: int
    online: int
    offline: int
    never: int
    differs: int
    updating: int
    failed: int
    profiles: tuple[ProfileCount, ...]
    modules: tuple[ModuleCount, ...]


class Fleet:
    """`offline_after_s` is how long a device may be quiet before it is called offline."""

    def __init__(self, store: Store, clock: Clock, offline_after_s: float) -> None:
        self._store, self._clock, self._offline_after_s = store, clock, offline_after_s

    @property
    def moment(self) -> Moment:
        return Moment(self._clock(), self._offline_after_s)

    async def page(
        self, wanted: FleetQuery, after: str = "", limit: int = 100, brief: bool = False, scope: Scope = EVERYTHING
    ) -> list[Device]:
        """At most `limit` devices behind the id `after`, in the order of their ids; without reports when `brief`.

        Raises BadRequest as `resolving.put_in`.
        """
        moment = self.moment
        columns = [column for column in devices.c if not (brief and column.name == "report")]
        async with self._store.read() as connection:
            which = await self._which(connection, wanted, scope, moment)
            query = select(*columns).where(*which, devices.c.id > after)
            rows: list[Row[Any]] = list(await connection.execute(query.order_by(devices.c.id).limit(limit)))
            ids = [row.id for row in rows]
            runs = await _runs(connection, ids)
            differs = set((await connection.execute(differing(ids))).scalars())
        if len(rows) <= FEW:
            return _made(rows, runs, differs, moment)
        return await asyncio.to_thread(_made, rows, runs, differs, moment)

    async def summary(self, wanted: FleetQuery, scope: Scope = EVERYTHING) -> FleetSummary:
        """Raises BadRequest as `resolving.put_in`."""
        moment = self.moment
        async with self._store.read() as connection:
            which = await self._which(connection, wanted, scope, moment)
            profiles = await _profiles(connection, which, moment)
            modules = await _modules(connection, which)
            r = reported_modules.c
            ill = select(func.count(r.device.distinct())).where(r.state == "failed")
            failed = await connection.execute(ill.where(r.device.in_(select(devices.c.id).where(*which))))
            return _summed(profiles, modules, int(failed.scalar_one()))

    async def parts(self, device: str) -> list[Part]:
        """The device's part in rollouts, newest first: what explains why it is not as desired, or soon not."""
        query = select(executions).join(rollouts, executions.c.rollout == rollouts.c.id)
        query = query.where(executions.c.device == device)
        query = query.order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(PARTS_SHOWN)
        async with self._store.read() as connection:
            mine = {row.rollout: to_execution(row) for row in await connection.execute(query)}
            found = await connection.execute(select(rollouts).where(rollouts.c.id.in_(mine)))
            whole = {row.id: to_rollout(row) for row in found}
        return [Part(whole[rollout], execution) for rollout, execution in mine.items()]

    async def groups(self, device: str) -> list[str]:
        """The groups that the device is in, by name."""
        query = select(group_members.c.name).where(group_members.c.device == device).order_by(group_members.c.name)
        async with self._store.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def _which(
        self, connection: AsyncConnection, wanted: FleetQuery, scope: Scope, moment: Moment
    ) -> Sequence[ColumnElement[bool]]:
        query = await put_in(connection, parse(wanted.query))
        every = wanted.retired or "retired" in query.values("state")
        return [query.where(moment), in_scope(scope), *([] if every else [devices.c.retired_at.is_(None)])]


async def _runs(connection: AsyncConnection, ids: Collection[str]) -> dict[str, list[Running]]:
    found: dict[str, list[Running]] = defaultdict(list)
    if ids:
        r = reported_modules.c
        query = select(reported_modules).where(among(r.device, ids)).order_by(r.device, r.module, r.role.desc())
        for row in await connection.execute(query):
            found[row.device].append(Running(row.module, row.version, row.state, row.verified, row.role))
    return found


def _made(
    rows: Sequence[Row[Any]], runs: Mapping[str, list[Running]], differs: Collection[str], moment: Moment
) -> list[Device]:
    return [to_device(row, moment, runs.get(row.id, ()), row.id in differs) for row in rows]


async def _profiles(
    connection: AsyncConnection, which: Sequence[ColumnElement[bool]], moment: Moment
) -> list[ProfileCount]:
    d = devices.c

    def having(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.sum(case((condition, 1), else_=0))

    query = select(
        d.profile,
        d.agent_version,
        func.count().label("devices"),
        having(online(moment)).label("online"),
        having(d.id.in_(differing())).label("differs"),
        having(d.update_state != "idle").label("updating"),
        having(d.report_at.is_(None)).label("never"),
    )
    query = query.where(*which).group_by(d.profile, d.agent_version).order_by(d.profile, d.agent_version)
    return [ProfileCount(*row) for row in await connection.execute(query.limit(MAX_KINDS))]


async def _modules(connection: AsyncConnection, which: Sequence[ColumnElement[bool]]) -> list[ModuleCount]:
    r = reported_modules.c
    kind = (r.module, r.version, r.role, r.state, r.verified)
    query = select(*kind, func.count()).where(r.device.in_(select(devices.c.id).where(*which)))
    query = query.group_by(*kind).order_by(r.module, r.version.desc(), r.role.desc(), r.state, r.verified)
    return [ModuleCount(*row) for row in await connection.execute(query.limit(MAX_KINDS))]


def _summed(profiles: Sequence[ProfileCount], modules: Sequence[ModuleCount], failed: int) -> FleetSummary:
    count, here = sum(one.devices for one in profiles), sum(one.online for one in profiles)
    return FleetSummary(
        devices=count,
        online=here,
        offline=count - here,
        never=sum(one.never for one in profiles),
        differs=sum(one.differs for one in profiles),
        updating=sum(one.updating for one in profiles),
        failed=failed,
        profiles=tuple(profiles),
        modules=tuple(modules),
    )
