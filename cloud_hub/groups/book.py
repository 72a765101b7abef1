"""Static groups: made, filled and emptied by hand or from a query. Many devices go in slices, each one transaction.

What somebody may not see is not there for them: neither a group of others' devices alone, nor those in a group.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

import msgspec
from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict, Forbidden, NotFound
from cloud_hub.events import Events
from cloud_hub.groups.resolving import in_scope, meant
from cloud_hub.query import Moment
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.store.bulk import in_slices, insert_many
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import device_groups, devices, group_members
from firmware_profiles.profile import NAME_PATTERN

MAX_GROUPS: Final = 1000
MAX_NAMED: Final = 1000  # devices named one by one in a request
SLICE: Final = 2000  # devices of one transaction
SHOWN: Final = 20  # devices named in an event
Came = Callable[..., Awaitable[object]]
Description = Annotated[str, msgspec.Meta(max_length=500)]


async def nobody_asks(*_devices: str) -> None:
    return None


class DeviceGroup(msgspec.Struct, frozen=True):
    """`devices` counts its members, as far as whoever asks may see them."""

    name: str
    description: str
    created_at: float
    devices: int = 0


class NewGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group that is to be. Its name stands in queries: lower-case letters, digits, - and _."""

    name: str
    description: Description = ""


class Members(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices by their ids, or all that a query means now: one of the two."""

    devices: tuple[str, ...] = ()
    query: str = ""


class Changed(msgspec.Struct, frozen=True):
    """How many devices came into the group, or left it."""

    group: str
    devices: int


class Groups:
    """`came` is told of devices that have come into a group, after the commit."""

    def __init__(
        self, store: Store, events: Events, clock: Clock, offline_after_s: float, came: Came = nobody_asks
    ) -> None:
        self._store, self._events, self._clock = store, events, clock
        self._offline_after_s, self._came = offline_after_s, came

    async def create(self, new: NewGroup, actor: str) -> DeviceGroup:
        """Raises BadRequest `name-invalid`, Conflict `group-exists` or `too-many-groups`."""
        check_name(new.name, "group")
        found = DeviceGroup(new.name, new.description, self._clock())
        async with self._store.write() as connection:
            if await _count(connection) >= MAX_GROUPS:
                raise Conflict("too-many-groups", f"there are {MAX_GROUPS} groups already; nothing was made")
            try:
                row = {"name": found.name, "description": found.description, "created_at": found.created_at}
                await connection.execute(insert(device_groups).values(row))
            except IntegrityError as error:
                raise Conflict("group-exists", f"group {new.name}: there is one of this name", name=new.name) from error
            await self._events.record(connection, "group.created", actor, new.name, description=new.description)
        return found

    async def list(self, scope: Scope = EVERYTHING) -> list[DeviceGroup]:
        """By name."""
        async with self._store.read() as connection:
            return await _groups(connection, scope)

    async def get(self, name: str, scope: Scope = EVERYTHING) -> DeviceGroup:
        """Raises NotFound `group-not-found`."""
        async with self._store.read() as connection:
            return await _group(connection, name, scope)

    async def members(self, name: str, after: str, limit: int, scope: Scope = EVERYTHING) -> Sequence[str]:
        """At most `limit` device ids behind `after`, in their order. Raises NotFound `group-not-found`."""
        async with self._store.read() as connection:
            await _group(connection, name, scope)
            query = select(group_members.c.device).where(group_members.c.name == name, group_members.c.device > after)
            query = query.where(_visible(scope)).order_by(group_members.c.device).limit(limit)
            return list((await connection.execute(query)).scalars())

    async def remove(self, name: str, actor: str, scope: Scope = EVERYTHING) -> None:
        """The group, not its devices. Raises NotFound `group-not-found`, Forbidden `scope-exceeded`."""
        async with self._store.write() as connection:
            found = await _group(connection, name, scope)
            if not scope.everything and found.devices != (await _group(connection, name, EVERYTHING)).devices:
                text = f"group {name} has devices that are not in your scope; nothing was removed"
                raise Forbidden("scope-exceeded", text, name=name)
            await connection.execute(delete(group_members).where(group_members.c.name == name))
            await connection.execute(delete(device_groups).where(device_groups.c.name == name))
            await self._events.record(connection, "group.removed", actor, name, devices=found.devices)

    async def add(self, name: str, members: Members, actor: str, scope: Scope = EVERYTHING) -> Changed:
        """Devices that are in it already stay. Rollouts that take in whoever comes to match learn of each slice.

        Raises NotFound `group-not-found` or `device-not-found`, BadRequest `members-invalid` or as `resolving.meant`.
        """
        count = 0
        for some in in_slices(await self._devices(name, members, scope), SLICE):
            async with self._store.write() as connection:
                await _group(connection, name, scope)
                there = select(group_members.c.device).where(group_members.c.name == name)
                known = set((await connection.execute(there.where(among(group_members.c.device, some)))).scalars())
                new = [device for device in some if device not in known]
                now = self._clock()
                await insert_many(
                    connection, group_members, [{"name": name, "device": one, "added_at": now} for one in new]
                )
                await self._told(connection, "group.added", name, new, members, actor)
            await self._came(*new)
            count += len(new)
        return Changed(name, count)

    async def take(self, name: str, members: Members, actor: str, scope: Scope = EVERYTHING) -> Changed:
        """Devices that are not in it stay away. Raises as `add`."""
        count = 0
        for some in in_slices(await self._devices(name, members, scope), SLICE):
            async with self._store.write() as connection:
                await _group(connection, name, scope)
                mine = (group_members.c.name == name) & among(group_members.c.device, some)
                gone = list((await connection.execute(select(group_members.c.device).where(mine))).scalars())
                await connection.execute(delete(group_members).where(mine))
                await self._told(connection, "group.taken", name, gone, members, actor)
                count += len(gone)
        return Changed(name, count)

    async def _devices(self, name: str, members: Members, scope: Scope) -> Sequence[str]:
        if bool(members.devices) == bool(members.query) or len(members.devices) > MAX_NAMED:
            text = f"expected a query, or 1 to {MAX_NAMED} devices, and not both"
            raise BadRequest("members-invalid", f"members of group {name[:63]}: {text}")
        async with self._store.read() as connection:
            await _group(connection, name, scope)
            if members.query:
                moment = Moment(self._clock(), self._offline_after_s)
                return await meant(connection, members.query, moment, scope)
            wanted = sorted(set(members.devices))
            query = select(devices.c.id).where(among(devices.c.id, wanted), in_scope(scope))
            known = set((await connection.execute(query.where(devices.c.retired_at.is_(None)))).scalars())
        if missing := [device for device in wanted if device not in known]:
            raise NotFound(
                "device-not-found", f"no device {missing[0][:63]}; nothing was changed", device=missing[0][:63]
            )
        return wanted

    async def _told(
        self, connection: AsyncConnection, kind: str, name: str, changed: Sequence[str], members: Members, actor: str
    ) -> None:
        if changed:
            shown = {"devices": len(changed), "first": list(changed[:SHOWN]), "query": members.query}
            await self._events.record(connection, kind, actor, name, **shown)


def check_name(name: str, what: str) -> None:
    """Raises BadRequest `name-invalid`."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        text = f"{what} {name[:63]!r}: expected lower-case letters, digits, '-' and '_', at most 63"
        raise BadRequest("name-invalid", text)


def _visible(scope: Scope) -> ColumnElement[bool]:
    """Of a row of `group_members`."""
    if scope.everything:
        return group_members.c.device.is_not(None)
    return group_members.c.device.in_(select(devices.c.id).where(in_scope(scope)))


async def _groups(connection: AsyncConnection, scope: Scope, name: str = "") -> list[DeviceGroup]:
    m = group_members.c
    counted = select(m.name, func.count().label("all")).group_by(m.name)
    every = {row.name: row.all for row in await connection.execute(counted.where(m.name == name) if name else counted)}
    mine = every
    if not scope.everything:
        query = counted.where(_visible(scope))
        mine = {row.name: row.all for row in await connection.execute(query.where(m.name == name) if name else query)}
    rows = select(device_groups).order_by(device_groups.c.name)
    found = await connection.execute(rows.where(device_groups.c.name == name) if name else rows)
    groups = [DeviceGroup(row.name, row.description, row.created_at, mine.get(row.name, 0)) for row in found]
    return [group for group in groups if group.devices or not every.get(group.name)]


async def _group(connection: AsyncConnection, name: str, scope: Scope) -> DeviceGroup:
    found = await _groups(connection, scope, name) if name else []
    if not found:
        raise NotFound("group-not-found", f"no group {name[:63]}", name=name[:63])
    return found[0]


async def _count(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(func.count()).select_from(device_groups))).scalar_one())
