"""Which devices would refuse a version because what they run was signed later: a note of the dry run.

A device takes no release of a module that is older than the one it has verified (the TUF specification calls it a
rollback attack). A fleet rollback signs the older version anew, so the newer one is the older release from then on.
Called by `preview`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.rollouts.transfers import Step
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.tables import modules


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
        f"{count} device{'s' if count > 1 else ''} would refuse it, because what they run was signed later: sign it "
        f"again first (mooring module sign {module}:{version})"
    )
