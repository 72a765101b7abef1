"""How long executions took that came to a good end, as the rollouts of before tell it. Called by `preview`.

Bounded: a few rollouts, a few hundred executions of each.
"""

from __future__ import annotations

import statistics
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.builds import builds_of
from cloud_hub.errors import NotFound
from cloud_hub.rollouts.states import ExecutionState
from cloud_hub.store.tables import executions, rollouts
from modules.errors import ManifestError
from modules.manifest import decode_manifest

MAX_ROLLOUTS: Final = 5
MAX_OF_ONE: Final = 200


class Durations(msgspec.Struct, frozen=True):
    """Seconds from assignment to verified: `typical_s` is the median, `most_s` what 9 of 10 devices keep to.

    `executions` were measured, `basis` says of what; with none both numbers are what the module asks for at the least.
    """

    typical_s: float
    most_s: float
    executions: int
    basis: str


async def expected(connection: AsyncConnection, blobs: Blobs, module: str, version: int) -> Durations:
    """What was measured; where nothing was, what the manifest's probation takes, which is the least."""
    found = await measured(connection, module)
    if found is not None:
        return found
    builds = await builds_of(connection, module, version, limit=1)
    try:
        probation_s = decode_manifest(await blobs.read(builds[0])).health.probation_s if builds else 0.0
    except (NotFound, ManifestError):
        probation_s = 0.0
    return Durations(probation_s, probation_s, 0, "nothing measured yet: only the probation that the manifest asks for")


async def measured(connection: AsyncConnection, module: str) -> Durations | None:
    """Of the newest rollouts of the module, else of the newest of any; None where nothing was ever verified."""
    for name, source in ((module, f"earlier rollouts of {module}"), ("", "earlier rollouts of other modules")):
        found = await _seconds(connection, name)
        if found:
            cuts = statistics.quantiles(found, n=10, method="inclusive") if len(found) > 1 else [found[0]] * 9
            return Durations(statistics.median(found), cuts[8], len(found), source)
    return None


async def _seconds(connection: AsyncConnection, module: str) -> list[float]:
    newest = select(rollouts.c.id).where(rollouts.c.started_at.is_not(None)).order_by(rollouts.c.created_at.desc())
    if module:
        newest = newest.where(rollouts.c.module == module)
    found: list[float] = []
    for rollout in (await connection.execute(newest.limit(MAX_ROLLOUTS))).scalars().all():
        query = select(executions.c.started_at, executions.c.finished_at).where(
            executions.c.rollout == rollout,
            executions.c.state == str(ExecutionState.VERIFIED),
            executions.c.started_at.is_not(None),
        )
        rows = await connection.execute(query.limit(MAX_OF_ONE))
        # A device that ran the module already is verified at once, and says nothing about how long an update takes.
        found += [row.finished_at - row.started_at for row in rows if row.finished_at > row.started_at]
    return found
