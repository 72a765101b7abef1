"""Which devices a command is for. Called by `commands`."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.agents import older
from cloud_hub.asking.wanted import MAX_BATCH, NewCommand
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.groups.resolving import in_scope, where
from cloud_hub.query import Moment
from cloud_hub.roles import Scope
from cloud_hub.store.tables import assignments, devices
from modules.manifest import NEWER_AGENT


async def find(
    connection: AsyncConnection, new: NewCommand, scope: Scope, moment: Moment
) -> tuple[list[str], list[str]]:
    """Devices that are asked, and those that are left out because their agent is too old. By id.

    Of a target only devices that shall have the module are meant, where one is named. Raises as `Commands.ask`.
    """
    mine = (devices.c.retired_at.is_(None), in_scope(scope))
    query = select(devices.c.id, devices.c.agent_version).where(*mine).order_by(devices.c.id)
    if new.device:
        row = (await connection.execute(query.where(devices.c.id == new.device))).one_or_none()
        if row is None:
            raise NotFound("device-not-found", f"no device {new.device[:63]}", device=new.device[:63])
        if _outdated(row.agent_version):
            text = f"device {row.id} runs agent {row.agent_version}, which knows no such commands: update it first"
            raise Conflict("agent-outdated", text, device=row.id, agent_version=row.agent_version)
        return [row.id], []
    query = query.where(await where(connection, new.target, moment)).limit(MAX_BATCH + 1)
    if new.module:
        held = select(assignments.c.device).where(assignments.c.module == new.module)
        query = query.where(devices.c.id.in_(held))
    rows = (await connection.execute(query)).all()
    _check_number(new, len(rows))
    fitting = [row.id for row in rows if not _outdated(row.agent_version)]
    outdated = [row.id for row in rows if _outdated(row.agent_version)]
    if not fitting:
        text = f"all {len(outdated)} devices that match run agents that know no such commands: update them first"
        raise Conflict("agent-outdated", text, devices=outdated)
    return fitting, outdated


def _check_number(new: NewCommand, found: int) -> None:
    what = f"target {new.target!r}" + (f" and module {new.module}" if new.module else "")
    if not found:
        raise Unprocessable("no-device-matches", f"{what}: no device matches; nothing was asked")
    if found > MAX_BATCH:
        text = f"{what}: expected at most {MAX_BATCH} devices, more match; ask parts of them, one after the other"
        raise Unprocessable("too-many-devices", f"{text}; nothing was asked", most=MAX_BATCH)


def _outdated(version: str) -> bool:
    return bool(version) and older(version, NEWER_AGENT)
