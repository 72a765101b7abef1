"""The desired set: what each device shall run. Written here, signed by the director, asked for by the device.

Every change raises the device's director version, in the transaction of whoever asks for it. Called by the rollout
controller and the API; nothing here speaks to devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.agents import agent_version, older
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, modules
from modules.manifest import SamplingPolicy
from modules.targets import Mode


class Assignment(msgspec.Struct, frozen=True):
    """One module that a device shall have. `deployment` names the rollout that asked for it.

    `sampling` null means the manifest's own policy; `config` goes to the module as it is.
    """

    module: str
    version: int
    profile: str
    deployment: str
    mode: Mode = "serve"
    sampling: SamplingPolicy | None = None
    config: Mapping[str, Any] = {}


class Desired:
    """Reads and changes the assignments of devices."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def of(self, device: str) -> tuple[Assignment, ...]:
        """Everything assigned to the device, by module name."""
        query = select(assignments).where(assignments.c.device == device).order_by(assignments.c.module)
        async with self._store.read() as connection:
            return tuple(to_assignment(row) for row in await connection.execute(query))

    async def current(self, connection: AsyncConnection, device: str, module: str) -> Assignment | None:
        """What stands for this module now: what a failed rollout goes back to."""
        query = select(assignments).where(assignments.c.device == device, assignments.c.module == module)
        row = (await connection.execute(query)).one_or_none()
        return None if row is None else to_assignment(row)

    async def assign(self, connection: AsyncConnection, device: str, assignment: Assignment) -> int:
        """Puts the assignment in the place of the module's old one; the director version that carries it.

        The same assignment again changes nothing. Raises NotFound `device-not-found` or `module-not-found`, Conflict
        `device-retired`, `profile-mismatch`, `agent-outdated` or `module-not-signed`.
        """
        version = await _check_device(connection, device, assignment.profile)
        await _check_agent(connection, device, assignment)
        await _check_signed(connection, assignment)
        old = await self.current(connection, device, assignment.module)
        if old == assignment:
            return version
        if old is not None:
            await _remove(connection, device, assignment.module)
        values = msgspec.to_builtins(assignment)
        await connection.execute(insert(assignments).values(device=device, assigned_at=self._clock(), **values))
        return await _raise_version(connection, device)

    async def unassign(self, connection: AsyncConnection, device: str, module: str) -> int:
        """Takes the module away; the director version without it. Nothing assigned changes nothing."""
        version = await _check_device(connection, device)
        if await self.current(connection, device, module) is None:
            return version
        await _remove(connection, device, module)
        return await _raise_version(connection, device)


def to_assignment(row: Row[Any]) -> Assignment:
    """The assignment in a row of the table."""
    return msgspec.convert(
        {field: getattr(row, field) for field in Assignment.__struct_fields__}, Assignment, from_attributes=True
    )


async def _check_device(connection: AsyncConnection, device: str, profile: str | None = None) -> int:
    query = select(devices.c.profile, devices.c.retired_at, devices.c.director_version).where(devices.c.id == device)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("device-not-found", f"no device {device}", device=device)
    if row.retired_at is not None:
        raise Conflict("device-retired", f"device {device} is retired: nothing can be assigned to it", device=device)
    if profile is not None and row.profile != profile:
        raise Conflict(
            "profile-mismatch",
            f"device {device}: expected a module for {row.profile}, got one for {profile}; nothing was assigned",
            device=device,
            expected=row.profile,
            got=profile,
        )
    return int(row.director_version)


async def _check_agent(connection: AsyncConnection, device: str, assignment: Assignment) -> None:
    """An older agent would refuse the whole desired state for a word that it does not know."""
    wanted = assignment.sampling.agent_version if assignment.sampling is not None else ""
    if not wanted:
        return
    report = (await connection.execute(select(devices.c.report).where(devices.c.id == device))).scalar_one_or_none()
    version = agent_version(report)
    if older(version, wanted):
        raise Conflict(
            "agent-outdated",
            f"device {device}: its sampling policy needs agent {wanted}, it has {version}; nothing was assigned",
            device=device,
            expected=wanted,
            got=version,
        )


async def _check_signed(connection: AsyncConnection, assignment: Assignment) -> None:
    name, version, profile = assignment.module, assignment.version, assignment.profile
    query = select(modules.c.release_counter).where(
        modules.c.name == name, modules.c.version == version, modules.c.profile == profile
    )
    row = (await connection.execute(query)).one_or_none()
    fields = {"name": name, "version": version, "profile": profile}
    if row is None:
        raise NotFound("module-not-found", f"no module {name} version {version} for {profile}", **fields)
    if row.release_counter is None:
        raise Conflict(
            "module-not-signed",
            f"module {name} version {version} for {profile} is not signed, so no device would take it; "
            "nothing was assigned",
            **fields,
        )


async def _remove(connection: AsyncConnection, device: str, module: str) -> None:
    await connection.execute(delete(assignments).where(assignments.c.device == device, assignments.c.module == module))


async def _raise_version(connection: AsyncConnection, device: str) -> int:
    change = update(devices).where(devices.c.id == device)
    change = change.values(director_version=devices.c.director_version + 1)
    return int((await connection.execute(change.returning(devices.c.director_version))).scalar_one())
