"""The desired set: what each device shall run. Written here, signed by the director, asked for by the device.

Every change raises the device's director version, in the transaction of whoever asks for it. Called by the rollout
controller and the API; nothing here speaks to devices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.agents import agent_version, older
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, HubError, NotFound
from cloud_hub.store.among import among
from cloud_hub.store.bulk import in_slices, insert_many
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, modules
from modules.manifest import NEWER_AGENT, SamplingPolicy
from modules.targets import Mode

Build = tuple[str, int, str]  # module, version, profile
Role = Literal["main", "candidate"]
MAIN: Final = "main"
CANDIDATE: Final = "candidate"


class Assignment(msgspec.Struct, frozen=True):
    """One module that a device shall have. `deployment` names the rollout that asked for it.

    `sampling` null means the manifest's own policy; `config` goes to the module as it is. A `candidate` runs beside the
    main version, with its sampling policy; `share` and `salt` say which predictions it gets, see `modules.arms`.
    """

    module: str
    version: int
    profile: str
    deployment: str
    mode: Mode = "serve"
    sampling: SamplingPolicy | None = None
    config: Mapping[str, Any] = {}
    role: Role = "main"
    share: float = 1.0
    salt: str = ""

    @property
    def agent_version(self) -> str:
        """The lowest that understands this, empty where all do."""
        if self.role == CANDIDATE or self.config:  # older agents do not say which configuration they have
            return NEWER_AGENT
        return self.sampling.agent_version if self.sampling is not None else ""


class Desired:
    """Reads and changes the assignments of devices."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def of(self, device: str) -> tuple[Assignment, ...]:
        """Everything assigned to the device, by module name, a candidate behind the main version."""
        query = select(assignments).where(assignments.c.device == device)
        query = query.order_by(assignments.c.module, assignments.c.role.desc())
        async with self._store.read() as connection:
            return tuple(to_assignment(row) for row in await connection.execute(query))

    async def current(
        self, connection: AsyncConnection, device: str, module: str, role: Role = "main"
    ) -> Assignment | None:
        """What stands for this module now: what a failed rollout goes back to."""
        return (await self.current_many(connection, [device], module, role)).get(device)

    async def current_many(
        self, connection: AsyncConnection, ids: Collection[str], module: str, role: Role = "main"
    ) -> dict[str, Assignment]:
        """As `current`, of many devices; those without the module are left out."""
        found: dict[str, Assignment] = {}
        for some in in_slices(sorted(ids)):
            query = select(assignments).where(_of(some, module, role))
            found |= {row.device: to_assignment(row) for row in await connection.execute(query)}
        return found

    async def assign(self, connection: AsyncConnection, device: str, assignment: Assignment) -> int:
        """Puts the assignment in the place of the module's old one; the director version that carries it.

        The same assignment again changes nothing. Raises NotFound `device-not-found` or `module-not-found`, Conflict
        `device-retired`, `profile-mismatch`, `agent-outdated`, `module-not-signed`, `candidate-alone` or
        `candidate-older`. A candidate that the new main version is, or is newer than, goes.
        """
        return _or_raise((await self.assign_many(connection, {device: assignment}))[device])

    async def assign_many(
        self, connection: AsyncConnection, wanted: Mapping[str, Assignment]
    ) -> dict[str, int | HubError]:
        """As `assign`, for many devices: the version that carries it, or why the device keeps what it has."""
        known = await _known(connection, wanted)
        agents = await _agents(connection, [device for device, one in wanted.items() if one.agent_version])
        counters = await _counters(connection, {(one.module, one.version, one.profile) for one in wanted.values()})
        outcome: dict[str, int | HubError] = {}
        changed: dict[str, Assignment] = {}
        for module, role in {(one.module, one.role) for one in wanted.values()}:
            ours = {device: one for device, one in wanted.items() if (one.module, one.role) == (module, role)}
            stands = await self.current_many(connection, ours, module, role)
            mains = await self._mains(connection, ours, module) if role == CANDIDATE else {}
            for device, one in ours.items():
                try:
                    version = _check(device, one, known.get(device), agents.get(device), counters)
                    if role == CANDIDATE:
                        _check_beside(device, counters[_build(one)], mains.get(device))
                except HubError as error:
                    outcome[device] = error
                    continue
                outcome[device] = version if stands.get(device) == one else version + 1
                if stands.get(device) != one:
                    changed[device] = one
            await _remove(connection, changed.keys() & stands.keys(), module, role)
            if role == MAIN:
                await self._keep_beside(connection, module, {d: changed[d] for d in changed.keys() & ours}, counters)
        now = self._clock()
        rows = [msgspec.to_builtins(one) | {"device": device, "assigned_at": now} for device, one in changed.items()]
        for some in in_slices(rows):
            await insert_many(connection, assignments, some)
        await _raise_versions(connection, changed)
        return outcome

    async def unassign(self, connection: AsyncConnection, device: str, module: str, role: Role = "main") -> int:
        """Takes the module away, with the main version also its candidate; the director version without it. Nothing
        assigned changes nothing.
        """
        return _or_raise((await self.unassign_many(connection, [device], module, role))[device])

    async def unassign_many(
        self, connection: AsyncConnection, ids: Collection[str], module: str, role: Role = "main"
    ) -> dict[str, int | HubError]:
        """As `unassign`, for many devices."""
        known = await _known(connection, ids)
        stands = await self.current_many(connection, ids, module, role)
        outcome: dict[str, int | HubError] = {}
        for device in ids:
            try:
                outcome[device] = _living(device, known.get(device)).director_version + (device in stands)
            except HubError as error:
                outcome[device] = error
        gone = [device for device in stands if not isinstance(outcome[device], HubError)]
        await _remove(connection, gone, module, role)
        if role == MAIN:
            await _remove(connection, gone, module, CANDIDATE)
        await _raise_versions(connection, gone)
        return outcome

    async def _mains(
        self, connection: AsyncConnection, ids: Collection[str], module: str
    ) -> dict[str, tuple[Assignment, int]]:
        """The main version of each device that serves it, with its release counter."""
        stands = await self.current_many(connection, ids, module)
        counters = await _counters(connection, {_build(one) for one in stands.values()})
        return {d: (one, counters.get(_build(one)) or 0) for d, one in stands.items() if one.mode == "serve"}

    async def _keep_beside(
        self,
        connection: AsyncConnection,
        module: str,
        mains: Mapping[str, Assignment],
        counters: Mapping[Build, int | None],
    ) -> None:
        """Candidates that may stay beside the new main versions take over their sampling policies and configurations,
        for both are compared on the same inputs; others go: devices would refuse them as older releases.
        """
        beside = await self.current_many(connection, mains, module, CANDIDATE)
        known = await _counters(connection, {_build(one) for one in beside.values()})
        gone: list[str] = []
        followed: dict[bytes, tuple[dict[str, Any], list[str]]] = {}
        for device, one in beside.items():
            main = mains[device]
            if main.mode != "serve" or (known.get(_build(one)) or 0) <= (counters[_build(main)] or 0):
                gone.append(device)
            elif (one.sampling, one.config) != (main.sampling, main.config):
                values = {"sampling": msgspec.to_builtins(main.sampling), "config": dict(main.config)}
                followed.setdefault(msgspec.json.encode(values, order="sorted"), (values, []))[1].append(device)
        for values, ids in followed.values():
            for some in in_slices(ids):
                await connection.execute(update(assignments).where(_of(some, module, CANDIDATE)).values(**values))
        await _remove(connection, gone, module, CANDIDATE)


def _build(one: Assignment) -> Build:
    return one.module, one.version, one.profile


def _of(ids: Collection[str], module: str, role: str) -> ColumnElement[bool]:
    here = assignments.c
    return and_(among(here.device, ids), here.module == module, here.role == role)


def _check_beside(device: str, counter: int | None, main: tuple[Assignment, int] | None) -> None:
    """A candidate runs beside an older release that serves. Raises Conflict."""
    if main is None:
        text = (
            f"device {device}: expected a version that serves, for a candidate to run beside it; nothing was assigned"
        )
        raise Conflict("candidate-alone", text, device=device)
    if (counter or 0) <= main[1]:
        raise Conflict(
            "candidate-older",
            f"device {device}: expected a release after version {main[0].version}, which serves; nothing was assigned",
            device=device,
            version=main[0].version,
        )


def _or_raise(outcome: int | HubError) -> int:
    if isinstance(outcome, HubError):
        raise outcome
    return outcome


def to_assignment(row: Row[Any]) -> Assignment:
    """The assignment in a row of the table."""
    return msgspec.convert(
        {field: getattr(row, field) for field in Assignment.__struct_fields__}, Assignment, from_attributes=True
    )


async def _known(connection: AsyncConnection, ids: Collection[str]) -> dict[str, Row[Any]]:
    """Profile, end and director version of the devices, by id."""
    found: dict[str, Row[Any]] = {}
    for some in in_slices(sorted(ids)):
        query = select(devices.c.id, devices.c.profile, devices.c.retired_at, devices.c.director_version)
        found |= {row.id: row for row in await connection.execute(query.where(among(devices.c.id, some)))}
    return found


async def _agents(connection: AsyncConnection, ids: Collection[str]) -> dict[str, str]:
    """The agent's version that each device reports."""
    found: dict[str, str] = {}
    for some in in_slices(sorted(ids)):
        query = select(devices.c.id, devices.c.report).where(among(devices.c.id, some))
        found |= {id_: agent_version(report) for id_, report in await connection.execute(query)}
    return found


async def _counters(connection: AsyncConnection, builds: Collection[Build]) -> dict[Build, int | None]:
    """The release counter of each build that is there; None until it is signed."""
    found: dict[Build, int | None] = {}
    for name, version in {(name, version) for name, version, _ in builds}:
        query = select(modules.c.profile, modules.c.release_counter).where(
            modules.c.name == name, modules.c.version == version
        )
        found |= {(name, version, profile): counter for profile, counter in await connection.execute(query)}
    return found


def _check(
    device: str,
    wanted: Assignment,
    known: Row[Any] | None,
    agent: str | None,
    counters: Mapping[Build, int | None],
) -> int:
    """The director version that the device stands at. Raises as `Desired.assign`."""
    living = _living(device, known)
    if living.profile != wanted.profile:
        raise Conflict(
            "profile-mismatch",
            f"device {device}: expected a module for {living.profile}, got one for {wanted.profile}; "
            "nothing was assigned",
            device=device,
            expected=living.profile,
            got=wanted.profile,
        )
    _check_agent(device, wanted, agent)
    _check_signed(wanted, counters)
    return int(living.director_version)


def _living(device: str, known: Row[Any] | None) -> Row[Any]:
    if known is None:
        raise NotFound("device-not-found", f"no device {device}", device=device)
    if known.retired_at is not None:
        raise Conflict("device-retired", f"device {device} is retired: nothing can be assigned to it", device=device)
    return known


def _check_agent(device: str, assignment: Assignment, version: str | None) -> None:
    """An older agent would refuse the whole desired state for a word that it does not know."""
    wanted = assignment.agent_version
    what = "its configuration" if assignment.config else "its sampling policy"
    what = "a candidate" if assignment.role == CANDIDATE else what
    if version is not None and wanted and older(version, wanted):
        raise Conflict(
            "agent-outdated",
            f"device {device}: {what} needs agent {wanted}, it has {version}; nothing was assigned",
            device=device,
            expected=wanted,
            got=version,
        )


def _check_signed(assignment: Assignment, counters: Mapping[Build, int | None]) -> None:
    name, version, profile = assignment.module, assignment.version, assignment.profile
    fields = {"name": name, "version": version, "profile": profile}
    if (name, version, profile) not in counters:
        raise NotFound("module-not-found", f"no module {name} version {version} for {profile}", **fields)
    if counters[name, version, profile] is None:
        raise Conflict(
            "module-not-signed",
            f"module {name} version {version} for {profile} is not signed, so no device would take it; "
            "nothing was assigned",
            **fields,
        )


async def _remove(connection: AsyncConnection, ids: Collection[str], module: str, role: str) -> None:
    for some in in_slices(sorted(ids)):
        await connection.execute(delete(assignments).where(_of(some, module, role)))


async def _raise_versions(connection: AsyncConnection, ids: Collection[str]) -> None:
    for some in in_slices(sorted(ids)):
        change = update(devices).where(among(devices.c.id, some))
        await connection.execute(change.values(director_version=devices.c.director_version + 1))
