"""Which devices would refuse a version because what they run was signed later: a note of the dry run, and of creating.

A device takes no release of a module that is older than the one it has verified (the TUF specification calls it a
rollback attack). A fleet rollback signs the older version anew, so the newer one is the older release from then on.
Called by `preview` and `controller`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.rollouts.transfers import Step
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import among
from cloud_hub.store.tables import assignments, devices, modules
from cloud_hub.words import counted


async def notes_of(
    connection: AsyncConnection, module: str, version: int, groups: Sequence[Sequence[str]]
) -> tuple[str, ...]:
    """As `refusals` of these devices, by what they are assigned; nothing for version 0, a configuration alone."""
    if not version:
        return ()
    steps: Counter[Step] = Counter()
    on = and_(assignments.c.device == devices.c.id, assignments.c.module == module, assignments.c.role == "main")
    columns = select(devices.c.profile, assignments.c.version, func.count()).select_from(devices.join(assignments, on))
    query = columns.group_by(devices.c.profile, assignments.c.version)
    for ids in groups:
        for some in in_slices(ids):
            for profile, has, count in await connection.execute(query.where(among(devices.c.id, some))):
                steps[Step(profile, has)] += count
    said = await refusals(connection, module, version, steps)
    return (said,) if said else ()


async def refusals(connection: AsyncConnection, module: str, version: int, steps: Mapping[Step, int]) -> str:
    """In words, with the command that helps; empty where no device has a later release by what it is assigned."""
    versions = sorted({version, *(step.from_version for step in steps if step.from_version)})
    releases: dict[Step, int] = {}
    for some in in_slices(versions):
        query = select(modules.c.profile, modules.c.version, modules.c.release_counter)
        for row in await connection.execute(query.where(modules.c.name == module, modules.c.version.in_(some))):
            releases[Step(row.profile, row.version)] = row.release_counter or 0
    count = sum(
        number for step, number in steps.items() if releases.get(step, 0) > releases.get(Step(step.profile, version), 0)
    )
    if not count:
        return ""
    return (
        f"{counted(count, 'device')} would refuse it, because what they run was signed later: sign it "
        f"again first (mooring module sign {module}:{version})"
    )
